"""How the requests and results of batches are written, by each door in its own form."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from promptstack.repositories.batch_models import BatchDoor
from promptstack.repositories.run_models import RunKind


@dataclass(frozen=True)
class Written:
    """The batch whose lines are written."""

    batch_id: UUID
    endpoint: str
    model: str
    """Whom its run asks."""
    created: int
    """When its run was started, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class AnsweredLine:
    """A request that was answered."""

    position: int
    """The number of its line in the input file, from 1."""
    custom_id: str
    parameters: Mapping[str, Any]
    """What it has asked for, with our names."""
    answer: Mapping[str, Any] | None
    """`text`, `finish_reason` and the like, of a generation."""
    vector: bytes | None
    """Of an embedding, as little-endian float32."""
    text_bytes: int = 0
    """Of the text of an embedding."""


@dataclass(frozen=True, slots=True)
class FailedLine:
    """A request without an answer, and why."""

    position: int
    custom_id: str
    code: str
    """Ours, or BATCH_CANCELLED, BATCH_EXPIRED and BATCH_FAILED of what was left open at the end."""
    message: str
    detail: str | None
    """The provider's own words."""


class LineForm(Protocol):
    """How one door writes batches."""

    @property
    def endpoints(self) -> Mapping[str, RunKind]:
        """What its batches may ask for."""

    @property
    def id_prefix(self) -> str:
        """Of its ids of batches."""

    @property
    def skips_bad(self) -> bool:
        """Whether a line that can't be asked for fails alone. Else it fails the batch."""

    def answered(self, batch: Written, line: AnsweredLine) -> bytes:
        """A line of the output, with its end."""

    def failed(self, batch: Written, line: FailedLine) -> bytes:
        """A line of the errors, with its end."""


LineForms = Mapping[BatchDoor, LineForm]
