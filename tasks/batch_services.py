"""What batches are made of: for callers, and for workers."""

from functools import cached_property
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from promptstack.config.settings import Settings
from promptstack.repositories.batch_models import BatchDoor
from promptstack.repositories.session import Ledger
from promptstack.services.anthropic.batch_lines import AnthropicLines
from promptstack.services.batches.endings import BatchEndings
from promptstack.services.batches.forms import LineForms
from promptstack.services.batches.requests import BatchBounds
from promptstack.services.cache.cache import Cache
from promptstack.services.files.contents import PartContent
from promptstack.services.files.service import FileService
from promptstack.services.jobs.publishing import Publisher
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.openai.batch_lines import OpenAILines
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.results import RunResults

if TYPE_CHECKING:
    # Imported when they are made: what takes runs in takes long to load.
    from promptstack.services.batches.contents import BatchContents
    from promptstack.services.batches.costs import FileCosts
    from promptstack.services.batches.intake import BatchIntake
    from promptstack.services.batches.service import BatchService
    from promptstack.services.runs.feasibility import Feasibility, Finish
    from promptstack.services.runs.service import RunService


class Stack(Protocol):
    """What they are made of."""

    settings: Settings

    @property
    def ledger(self) -> Ledger:
        """PostgreSQL."""

    @property
    def publisher(self) -> Publisher:
        """Sends jobs' messages."""

    @property
    def cache(self) -> Cache:
        """Remembers where downloads can go on."""

    @property
    def files(self) -> FileService:
        """Files of users."""

    @property
    def runs(self) -> "RunService":
        """Runs."""

    @property
    def feasibility(self) -> "Feasibility":
        """When runs can be done."""

    @property
    def run_lifecycle(self) -> RunLifecycle:
        """What ends runs."""

    @property
    def run_results(self) -> RunResults:
        """What runs have made."""

    @property
    def model_names(self) -> ModelNames:
        """Whom names of models mean."""


FORMS: LineForms = {BatchDoor.OPENAI: OpenAILines(), BatchDoor.ANTHROPIC: AnthropicLines()}


def _bounds(settings: Settings) -> BatchBounds:
    return BatchBounds(
        settings.max_batch_lines, settings.max_batch_bytes, settings.batch_repeat_seconds
    )


def open_batches(stack: Stack) -> "BatchService":
    """What accepts batches."""
    from promptstack.services.batches.service import BatchService  # noqa: PLC0415 - runs

    return BatchService(
        stack.ledger,
        stack.publisher,
        stack.files,
        stack.runs,
        stack.run_lifecycle,
        forms=FORMS,
        bounds=_bounds(stack.settings),
    )


def open_file_costs(stack: Stack) -> "FileCosts":
    """What estimates the cost of a file."""
    from promptstack.services.batches.costs import FileCosts  # noqa: PLC0415 - runs

    return FileCosts(
        stack.files,
        stack.runs,
        stack.model_names,
        form=FORMS[BatchDoor.OPENAI],
        bounds=_bounds(stack.settings),
    )


class Contents:
    """What makes their outputs. It is loaded with the first one that is read."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @cached_property
    def _made(self) -> "BatchContents":
        from promptstack.services.batches.contents import BatchContents  # noqa: PLC0415 - pyarrow

        stack = self._stack
        return BatchContents(stack.ledger, stack.run_results, stack.cache, FORMS)

    def open(self, batch_id: UUID, part: str, *, after_lines: int = 0) -> PartContent:
        """Open an output; see `BatchContents`."""
        return self._made.open(batch_id, part, after_lines=after_lines)


def open_intake(stack: Stack) -> "BatchIntake":
    """What takes their files in."""
    from promptstack.services.batches.intake import BatchIntake  # noqa: PLC0415 - few workers do

    def finish_of(run_id: UUID) -> "Finish | None":
        return stack.feasibility.of(run_id) if stack.settings.batch_refuses_late else None

    return BatchIntake(
        stack.files,
        stack.runs,
        stack.model_names,
        forms=FORMS,
        bounds=_bounds(stack.settings),
        finish_of=finish_of,
    )


def open_endings(stack: Stack) -> BatchEndings:
    """What ends them."""

    def discard(run_id: UUID) -> None:
        # What takes runs in is made by the first worker that has a file to take in.
        stack.runs.discard(run_id)

    return BatchEndings(stack.ledger, stack.run_lifecycle, discard)
