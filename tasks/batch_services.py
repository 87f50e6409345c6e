"""What batches are made of: for callers, and for workers."""

from functools import cached_property
from typing import TYPE_CHECKING
from uuid import UUID

from promptstack.repositories.batch_models import BatchDoor
from promptstack.services.batches.endings import BatchEndings
from promptstack.services.batches.forms import LineForms
from promptstack.services.batches.requests import BatchBounds
from promptstack.services.batches.service import BatchService
from promptstack.services.files.contents import PartContent
from promptstack.services.openai.batch_lines import OpenAILines

if TYPE_CHECKING:
    from promptstack.config.settings import Settings
    from promptstack.services.batches.contents import BatchContents
    from promptstack.services.batches.intake import BatchIntake
    from promptstack.tasks.composition import PromptStack

FORMS: LineForms = {BatchDoor.OPENAI: OpenAILines()}


def _bounds(settings: "Settings") -> BatchBounds:
    return BatchBounds(
        settings.max_batch_lines, settings.max_batch_bytes, settings.batch_repeat_seconds
    )


def open_batches(stack: "PromptStack") -> BatchService:
    """What accepts batches."""
    return BatchService(
        stack.ledger,
        stack.publisher,
        stack.files,
        stack.runs,
        stack.run_lifecycle,
        forms=FORMS,
        bounds=_bounds(stack.settings),
    )


class Contents:
    """What makes their outputs. It is loaded with the first one that is read."""

    def __init__(self, stack: "PromptStack") -> None:
        self._stack = stack

    @cached_property
    def _made(self) -> "BatchContents":
        from promptstack.services.batches.contents import BatchContents  # noqa: PLC0415 - pyarrow

        stack = self._stack
        return BatchContents(stack.ledger, stack.run_results, stack.cache, FORMS)

    def open(self, batch_id: UUID, part: str, *, after_lines: int = 0) -> PartContent:
        """Open an output; see `BatchContents`."""
        return self._made.open(batch_id, part, after_lines=after_lines)


def open_intake(stack: "PromptStack") -> "BatchIntake":
    """What takes their files in."""
    from promptstack.services.batches.intake import BatchIntake  # noqa: PLC0415 - few workers do

    return BatchIntake(
        stack.files, stack.runs, stack.model_names, forms=FORMS, bounds=_bounds(stack.settings)
    )


def open_endings(stack: "PromptStack") -> BatchEndings:
    """What ends them."""

    def discard(run_id: UUID) -> None:
        # What takes runs in is made by the first worker that has a file to take in.
        stack.runs.discard(run_id)

    return BatchEndings(stack.ledger, stack.run_lifecycle, discard)
