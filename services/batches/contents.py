"""The outputs of batches, made of their runs when they are read.

While a batch goes on, a part ends before the first request that is still open: what was read of it
stays as it is, so that reading goes on behind it. When the batch has ended, requests without an
answer stand among the errors.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from uuid import UUID

from promptstack.repositories.batch_models import Batch, BatchDoor, BatchState
from promptstack.repositories.run_models import Run
from promptstack.repositories.runs.results import RunLine, Unanswered
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.batches.forms import (
    AnsweredLine,
    FailedLine,
    LineForm,
    LineForms,
    Written,
)
from promptstack.services.cache.cache import Cache
from promptstack.services.errors import NotFound
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs.downloads import Download, Wanted
from promptstack.services.runs.results import RunResults, Span

WRITTEN_AS = 2
"""Raise it when the bytes of a line change: what was downloaded before can't be continued."""


class BatchPart(StrEnum):
    """The outputs of a batch."""

    OUTPUT = "output"
    ERRORS = "errors"


LEFT = {
    BatchState.CANCELLED: ("BATCH_CANCELLED", "The batch was cancelled before this request."),
    BatchState.EXPIRED: ("BATCH_EXPIRED", "The batch's window ended before this request."),
    BatchState.FAILED: ("BATCH_FAILED", "The batch ended before this request."),
}
"""Why requests have no answer that were open when their batch ended."""
DELETED = ("RESULT_DELETED", "The result was too old to be kept, and was deleted.")


class PartDownload(Download):
    """What a batch has written so far of one part."""

    last_line: int
    """How many lines there are now, those that were not asked for included."""


@dataclass(frozen=True)
class _Asked:
    """Which part of which batch is read."""

    batch: Batch
    run: Run
    part: BatchPart
    form: LineForm
    span: Span

    @cached_property
    def written(self) -> Written:
        """What every line says of its batch."""
        batch, run = self.batch, self.run
        began = batch.in_progress_at or batch.created_at
        return Written(batch.id, batch.endpoint, run.model, int(began.timestamp()))


class BatchContents:
    """Opens the outputs of batches."""

    def __init__(self, ledger: Ledger, results: RunResults, cache: Cache, forms: LineForms) -> None:
        self._ledger = ledger
        self._results = results
        self._cache = cache
        self._forms = forms

    def open(self, batch_id: UUID, part: str, *, after_lines: int = 0) -> PartDownload:
        """Open a part behind so many lines. Raises `NotFound` where its run was deleted."""
        part = BatchPart(part)
        with self._ledger.transaction() as unit:
            found = unit.batches.find(batch_id)
            if found is None or found.run is None:
                raise NotFound("The file is gone: its batch, or the run of that, was deleted.")
            batch, run = found.batch, found.run
            has_ended, is_answered = batch.ended_at is not None, part is BatchPart.OUTPUT
            until: int | None = None
            if has_ended:
                lines = batch.completed if is_answered else batch.total - batch.completed
            else:
                until = _settled(unit, run)
                lines = unit.results.count_ended(run.id, until, is_answered=is_answered)
            after = _behind(unit, run, min(after_lines, lines), is_answered, until)
        version = run.version if has_ended else None
        form = self._forms[BatchDoor(batch.door)]
        asked = _Asked(batch, run, part, form, Span(after, until, version))
        tag = None
        if has_ended:
            parts = (batch.id, run.id, run.version, part, after, WRITTEN_AS)
            tag = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
        download = PartDownload(
            lambda after, is_continued: self._read(asked, after),
            Wanted(ExportFormat.JSONL, failures=part is BatchPart.ERRORS, after=after),
            name=f"{form.id_prefix}{batch.id.hex}_{part}.jsonl",
            tag=tag,
            cache=self._cache,
        )
        download.last_line = lines
        return download

    def _read(self, asked: _Asked, after: int) -> Iterator[tuple[int, bytes]]:
        if asked.part is BatchPart.OUTPUT:
            return self._answered(asked, after)
        return self._failed(asked, after)

    def _answered(self, asked: _Asked, after: int) -> Iterator[tuple[int, bytes]]:
        span = Span(after, asked.span.until, asked.span.version)
        for rows in self._results.lines(asked.run.id, span):
            lines = [_written(asked, row) for row in rows if row.state == "succeeded"]
            if lines:
                yield rows[-1].position, b"".join(lines)

    def _failed(self, asked: _Asked, after: int) -> Iterator[tuple[int, bytes]]:
        write, written = asked.form.failed, asked.written
        left = LEFT.get(BatchState(asked.batch.state))
        span = Span(after, asked.span.until, asked.span.version)
        for rows in self._results.unanswered_blocks(asked.run.id, span):
            lines = [write(written, _failed_line(row, left)) for row in rows]
            yield rows[-1].position, b"".join(lines)


def _behind(unit: UnitOfWork, run: Run, lines: int, is_answered: bool, until: int | None) -> int:
    """The position of the last of so many lines."""
    if not lines:
        return 0
    found = unit.results.position_of(run.id, lines, is_answered=is_answered, until=until)
    return run.last_position if found is None else found


def _settled(unit: UnitOfWork, run: Run) -> int:
    first = unit.items.next_slice(run.id, 1, 1)
    return run.last_position if first is None else first.first - 1


def _written(asked: _Asked, row: RunLine) -> bytes:
    custom_id = row.custom_id or ""
    if row.answer is None and row.vector is None:
        lost = FailedLine(row.position, custom_id, *DELETED, None)
        return asked.form.failed(asked.written, lost)
    vector = None if row.vector is None else row.vector.astype("<f4", copy=False).tobytes()
    line = AnsweredLine(row.position, custom_id, row.parameters, row.answer, vector, row.text_bytes)
    return asked.form.answered(asked.written, line)


def _failed_line(row: Unanswered, left: tuple[str, str] | None) -> FailedLine:
    custom_id = row.custom_id or ""
    if row.code is None:
        code, message = left or ("BATCH_FAILED", "It has no answer.")
        return FailedLine(row.position, custom_id, code, message, None)
    return FailedLine(row.position, custom_id, row.code, row.error or "", row.detail)
