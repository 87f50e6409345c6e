"""The output of runs, read in the order of their items."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Generic, TypeVar
from uuid import UUID

from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.runs.results import (
    FailedItem,
    PageOf,
    Produced,
    RunLine,
    Unanswered,
)
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.runs.sizes import models_of
from promptstack.services.validation.ids import read_id

PAGE = 2_000
FIRST_PAGE = 200
"""Rows of the first block, of which nobody knows how long they are."""
BLOCK_BYTES = 2_000_000
"""Of a block in memory, about; one row may have more. As text, vectors are three times as long."""
ROW_BYTES = 100
"""Of a row besides what it has come for, about."""
READ_AT_ONCE = 4
"""Pages that are read ahead, each with a connection to the database."""

Row = TypeVar("Row", Produced, FailedItem, RunLine, Unanswered)


@dataclass(frozen=True)
class Span:
    """Which results are read: those after a position, and up to one, both in or out of it."""

    after: int = 0
    until: int | None = None
    """None: to the end."""
    version: int | None = None
    """Of the run: if it is changed meanwhile, reading ends with `WrongState`."""
    with_input: bool = False
    with_vector: bool = True


@dataclass(frozen=True)
class _Page(Generic[Row]):
    rows: list[Row]
    more_after: int | None
    """The position after which there may be more; None at the end."""
    bytes: int
    """Of the rows, about."""


class RunResults:
    """Reads results and failures page by page. No transaction is open between two pages."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ahead = BoundedSemaphore(READ_AT_ONCE)

    def produced(
        self, run_id: UUID | str, *, with_input: bool = False, after: int = 0, page: int = PAGE
    ) -> Iterator[Produced]:
        """Yield the results so far, after a position. Raises `NotFound`."""
        span = Span(after, with_input=with_input)
        for rows in self._produced(read_id(run_id, "run"), span, page):
            yield from rows

    def failed(
        self, run_id: UUID | str, *, after: int = 0, page: int = PAGE
    ) -> Iterator[FailedItem]:
        """Yield the failed items so far, after a position. Raises `NotFound`."""
        for rows in self._failed(read_id(run_id, "run"), Span(after), page):
            yield from rows

    def produced_blocks(self, run_id: UUID, span: Span) -> Iterator[list[Produced]]:
        """Yield the results in blocks of about the same size. Raises as `produced`.

        While one is worked on, the next one is read.
        """
        return self._produced(run_id, span)

    def failed_blocks(self, run_id: UUID, span: Span) -> Iterator[list[FailedItem]]:
        """Yield the failed items as `produced_blocks` does. Raises as `failed`."""
        return self._failed(run_id, span)

    def lines(self, run_id: UUID, span: Span) -> Iterator[list[RunLine]]:
        """Yield all items of the run with what became of each so far, in blocks.

        Also those that are open, or never ran. While a block is worked on, the next one is read.
        Calls that were under way when the run ended may still bring results for a while.
        """
        run = self._run(run_id)
        answers_of = (run.provider, run.model) if run.kind == RunKind.GENERATION else None
        models: Sequence[EmbeddingModel] = []

        def read(unit: UnitOfWork, after: int, limit: int) -> _Page[RunLine]:
            nonlocal models
            if answers_of is None:
                models = models or _models(unit, run)
            wanted = PageOf(run.id, after, limit, span.until)
            found = unit.results.lines(wanted, run.parameters, answers_of, models)
            return _Page(found.rows, found.more_after, found.bytes + ROW_BYTES * len(found.rows))

        yield from self._pages(run_id, span, read, None)

    def unanswered_blocks(self, run_id: UUID, span: Span) -> Iterator[list[Unanswered]]:
        """Yield the items without a result, also open ones, as `produced_blocks` does."""

        def read(unit: UnitOfWork, after: int, limit: int) -> _Page[Unanswered]:
            rows = unit.results.unanswered(run_id, after, limit, until=span.until)
            size = sum(ROW_BYTES + len(row.error or "") + len(row.detail or "") for row in rows)
            return _Page(rows, rows[-1].position if len(rows) == limit else None, size)

        return self._pages(run_id, span, read, None)

    def settled_until(self, run_id: UUID, after: int = 0) -> int:
        """Return the last position up to which no item after `after` is open."""
        with self._ledger.transaction() as unit:
            first = unit.items.next_slice(run_id, after + 1, 1)
            run = unit.runs.get(run_id)
        if first is not None:
            return first.first - 1
        return max(after, run.last_position if run else 0)

    def dimensions(self, run_id: UUID) -> int | None:
        """Return how many numbers a vector of the run has. None for a generation."""
        sizes = self.sizes(run_id)
        return sizes[0] if sizes else None

    def sizes(self, run_id: UUID) -> list[int]:
        """Return how many numbers vectors of the run have; first the size that most have."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
            if run is None or run.kind != RunKind.EMBEDDING:
                return []
            return [model.dimensions for model in _models(unit, run)]

    def count_vectors(self, run_id: UUID, span: Span) -> int:
        """Count the vectors of a run that have the size that most have."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
            models = _models(unit, run) if run else []
            if run is None or not models:
                return 0
            return unit.results.count_vectors(run_id, models[0], after=span.after, until=span.until)

    def _produced(
        self, run_id: UUID, span: Span, page: int | None = None
    ) -> Iterator[list[Produced]]:
        run = self._run(run_id)
        models: Sequence[EmbeddingModel] = []

        def read(unit: UnitOfWork, after: int, limit: int) -> _Page[Produced]:
            nonlocal models
            wanted = PageOf(run.id, after, limit, span.until, span.with_input)
            if run.kind == RunKind.GENERATION:
                found = unit.results.answers(wanted, run.provider, run.model)
            else:
                models = models or _models(unit, run)
                if not models:
                    return _Page([], None, 0)
                found = unit.results.vectors(wanted, models, with_vector=span.with_vector)
            return _Page(found.rows, found.more_after, found.bytes + ROW_BYTES * len(found.rows))

        yield from self._pages(run_id, span, read, page)

    def _run(self, run_id: UUID) -> Run:
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        return run

    def _failed(
        self, run_id: UUID, span: Span, page: int | None = None
    ) -> Iterator[list[FailedItem]]:
        def read(unit: UnitOfWork, after: int, limit: int) -> _Page[FailedItem]:
            rows = unit.results.failures(run_id, after, limit, until=span.until)
            size = sum(ROW_BYTES + len(row.error) + len(row.detail or "") for row in rows)
            return _Page(rows, rows[-1].position if len(rows) == limit else None, size)

        yield from self._pages(run_id, span, read, page)

    def _pages(
        self,
        run_id: UUID,
        span: Span,
        read: Callable[[UnitOfWork, int, int], _Page[Row]],
        limit: int | None,
    ) -> Iterator[list[Row]]:
        """Yield pages of `limit` rows; without it, pages of about the same size, read ahead."""

        def read_page(after: int, limit: int) -> _Page[Row]:
            with self._ledger.transaction() as unit:
                page = read(unit, after, limit)
                # After the items: they are deleted after their run, so none of them was missing.
                run = unit.runs.get(run_id)
                if run is None:
                    raise NotFound(
                        f"There is no run {run_id}, or it was deleted while it was read."
                    )
                if span.version not in {None, run.version}:
                    raise WrongState("The run was changed while it was read; read it again.")
            return page

        if limit is None:
            yield from self._read_ahead(read_page, span.after)
            return
        after: int | None = span.after
        while after is not None:
            page = read_page(after, limit)
            if page.rows:
                yield page.rows
            after = page.more_after

    def _read_ahead(
        self, read_page: Callable[[int, int], _Page[Row]], after: int
    ) -> Iterator[list[Row]]:
        """Yield pages; while one is worked on, a thread reads the next one."""

        def read(after: int, limit: int) -> _Page[Row]:
            with self._ahead:
                return read_page(after, limit)

        size = FIRST_PAGE
        page = read_page(after, size)
        with ThreadPoolExecutor(1, "results") as reader:
            while page.more_after is not None:
                size = _rows_of_block(page, size)
                upcoming = reader.submit(read, page.more_after, size)
                if page.rows:
                    yield page.rows
                page = upcoming.result()
        if page.rows:
            yield page.rows


def _rows_of_block(page: _Page[Row], size: int) -> int:
    """How many rows the next block has, by the length of those before."""
    if not page.rows:
        return size
    return max(1, min(PAGE, 2 * size, int(BLOCK_BYTES * len(page.rows) / max(1, page.bytes))))


def _models(unit: UnitOfWork, run: Run) -> Sequence[EmbeddingModel]:
    """Return the dimensions that the run's vectors may have, first the one that most have."""
    models = models_of(unit, run.id, (run.provider, run.model), run.parameters)
    if len(models) < 2:
        return models  # not counted, as that takes a while
    counts = {model.id: unit.results.count_vectors(run.id, model) for model in models}
    return sorted(
        (model for model in models if counts[model.id]), key=lambda model: -counts[model.id]
    )
