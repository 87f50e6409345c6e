"""What a batch of a file would cost, by the checks and the estimates of the batch itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Unpack, cast
from uuid import UUID

from promptstack.repositories.run_models import RunKind
from promptstack.services.access.caller import OwnerKeywords
from promptstack.services.batches.checks import RequestCheck, first_request
from promptstack.services.batches.faults import faults_of
from promptstack.services.batches.forms import LineForm
from promptstack.services.batches.requests import CAPABILITIES, BatchBounds, check_input
from promptstack.services.batches.streams import BlockStream
from promptstack.services.batches.views import BatchError
from promptstack.services.errors import InvalidInput, UnknownModel
from promptstack.services.files.service import FileService
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.runs.intake.estimates import Weighed
from promptstack.services.runs.intake.new_run import RunKeywords
from promptstack.services.runs.service import RunService
from promptstack.services.sources.reading import Format, Reading, SourceBounds

READ_SECONDS = 60.0
"""How long a file is read for its estimate: its sender waits for it."""


@dataclass(frozen=True)
class FileCost:
    """What a batch of a file comes to."""

    endpoint: str
    weighed: Weighed
    errors: list[BatchError]
    """For which the batch would fail."""


class FileCosts:
    """Reads files as batches do, and stores nothing."""

    def __init__(
        self,
        files: FileService,
        runs: RunService,
        models: ModelNames,
        *,
        form: LineForm,
        bounds: BatchBounds,
    ) -> None:
        self._files = files
        self._runs = runs
        self._models = models
        self._form = form
        self._bounds = bounds

    def of(self, file_id: UUID, **owner: Unpack[OwnerKeywords]) -> FileCost:
        """Estimate a file. Raises `InvalidInput` and `NotFound`."""
        user_id, limits = owner["user_id"], owner["key_limits"]
        check_input(self._files.get(file_id, user_id), self._bounds)
        first = first_request(self._blocks(file_id, user_id))
        if first is None:
            raise InvalidInput("No line of the file is a request that names a model.")
        endpoint, model = first.get("url"), first["body"]["model"]
        if not isinstance(endpoint, str) or endpoint not in self._form.endpoints:
            known = ", ".join(sorted(self._form.endpoints))
            raise InvalidInput(f"The url of the first request must be one of {known}.")
        kind = self._form.endpoints[endpoint]
        try:
            resolved = self._models.resolve(model, CAPABILITIES[kind], key_limits=limits)
        except UnknownModel as error:  # which is no address that isn't there
            raise InvalidInput(str(error), pointer="/body/model") from error
        how: RunKeywords = {
            "provider": resolved.provider,
            "model": resolved.model,
            "user_id": user_id,
            "key_limits": limits,
            "reading": Reading(format=Format.JSONL),
            "total_items": self._bounds.lines,
            "unpacked_bytes": self._bounds.bytes,
            "read_seconds": READ_SECONDS,
            "check_request": RequestCheck(endpoint, model),
        }
        source = self._stream(file_id, user_id)
        if kind is RunKind.EMBEDDING:
            weighed = self._runs.weigh_embedding(source, **how)
        else:
            weighed = self._runs.weigh_generation(source, **how)
        return FileCost(endpoint, weighed, faults_of(weighed))

    def _stream(self, file_id: UUID, owner: UUID) -> BinaryIO:
        return cast("BinaryIO", BlockStream(self._files.open(file_id, owner)))

    def _blocks(self, file_id: UUID, owner: UUID) -> Iterator[bytes]:
        # Imported here, as pyarrow takes 40 MB and few servers estimate files.
        from promptstack.services.sources.opening import Origin, byte_blocks  # noqa: PLC0415

        bounds = SourceBounds(unpacked_bytes=self._bounds.bytes, seconds=READ_SECONDS)
        return byte_blocks(Origin(None, self._stream(file_id, owner), bounds))
