"""The output of a run in object storage, written when the run has ended."""

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from uuid import UUID

from promptstack.repositories.run_models import Run, RunKind
from promptstack.services.errors import InvalidInput
from promptstack.services.export.items import ExportFormat
from promptstack.services.objects.storage import ObjectStorage

if TYPE_CHECKING:
    # It loads pyarrow, which takes 40 MB, and few workers need it.
    from promptstack.services.runs.downloads import Download, RunDownloads


class RunOutputs:
    """Writes outputs, and checks where they are to go."""

    def __init__(self, storage: ObjectStorage, downloads: "Callable[[], RunDownloads]") -> None:
        self._storage = storage
        self._downloads = downloads

    def check(self, url: str, kind: RunKind, user_id: UUID | None) -> str:
        """Return the URL if a run of this user may write there. Raises `InvalidInput`."""
        if _format(self._storage.check(url, user_id)) is ExportFormat.NPY and (
            kind is not RunKind.EMBEDDING
        ):
            raise InvalidInput("Answers are no vectors, and .npy holds only those; choose .jsonl.")
        return url

    def write(self, run: Run, url: str, go_on: Callable[[], None]) -> None:
        """Write results, and what failed to `<stem>.errors.jsonl` beside; each appears whole.

        `go_on` is called now and then, and stops it by raising. Raises `StorageFailed`.
        """
        from promptstack.services.runs.downloads import Wanted  # noqa: PLC0415

        downloads = self._downloads()
        self._write(url, downloads.open(run.id, None, Wanted(_format(url))), go_on)
        if run.failed:
            wanted = Wanted(ExportFormat.JSONL, failures=True)
            self._write(_beside(url), downloads.open(run.id, None, wanted), go_on)

    def _write(self, url: str, download: "Download", go_on: Callable[[], None]) -> None:
        with self._storage.writing(url) as file:
            for block in download.blocks():
                go_on()
                file.write(block)


def _format(url: str) -> ExportFormat:
    suffix = PurePosixPath(url).suffix.lower().removeprefix(".")
    try:
        return ExportFormat("jsonl" if suffix == "ndjson" else suffix)
    except ValueError as error:
        known = ", ".join(f".{each}" for each in ExportFormat)
        raise InvalidInput(f"The output's name tells no format; end it in {known}.") from error


def _beside(url: str) -> str:
    folder, _, name = url.rpartition("/")
    return f"{folder}/{PurePosixPath(name).stem}.errors.jsonl"
