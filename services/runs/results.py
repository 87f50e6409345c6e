"""The output of runs, read in the order of their items."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from promptstack.repositories.models import EmbeddingModel
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.validation.ids import read_id

PAGE = 2_000
FIRST_PAGE = 200
"""Rows of the first block, of which nobody knows how long they are."""
BLOCK_BYTES = 2_000_000
"""Of a block in memory, about; one row may have more. As text, vectors are three times as long."""
ROW_BYTES = 100
"""Of a row besides what it has come for, about."""

Row = TypeVar("Row", Produced, FailedItem)


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


class RunResults:
    """Reads results and failures page by page. No transaction is open between two pages."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def produced(
        self, run_id: UUID | str, *, with_input: bool = False, after: int = 0, page: int = PAGE
    ) -> Iterator[Produced]:
        """Yield the results so far, after a position. Raises `NotFound`."""
        span = Span(after, with_input=with_input)
        for rows in self._produced(read_id(run_id, "run"), span, lambda _: page):
            yield from rows

    def failed(
        self, run_id: UUID | str, *, after: int = 0, page: int = PAGE
    ) -> Iterator[FailedItem]:
        """Yield the failed items so far, after a position. Raises `NotFound`."""
        for rows in self._failed(read_id(run_id, "run"), Span(after), lambda _: page):
            yield from rows

    def produced_blocks(self, run_id: UUID, span: Span) -> Iterator[list[Produced]]:
        """Yield the results in blocks of about the same size. Raises as `produced`."""
        return self._produced(run_id, span, _rows_of_block)

    def failed_blocks(self, run_id: UUID, span: Span) -> Iterator[list[FailedItem]]:
        """Yield the failed items in blocks of about the same size. Raises as `failed`."""
        return self._failed(run_id, span, _rows_of_block)

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
        self, run_id: UUID, span: Span, page_after: Callable[[Sequence[Produced]], int]
    ) -> Iterator[list[Produced]]:
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        models: Sequence[EmbeddingModel] = []

        def read(unit: UnitOfWork, after: int, page: int) -> tuple[list[Produced], int | None]:
            nonlocal models
            text, until = span.with_input, span.until
            if run.kind == RunKind.GENERATION:
                return unit.results.answers(
                    run.id, run.provider, run.model, after, page, with_text=text, until=until
                )
            models = models or _models(unit, run)
            if not models:
                return [], None
            return unit.results.vectors(
                run.id,
                models,
                after,
                page,
                with_text=text,
                with_vector=span.with_vector,
                until=until,
            )

        yield from self._pages(run_id, span, read, page_after)

    def _failed(
        self, run_id: UUID, span: Span, page_after: Callable[[Sequence[FailedItem]], int]
    ) -> Iterator[list[FailedItem]]:
        def read(unit: UnitOfWork, after: int, page: int) -> tuple[list[FailedItem], int | None]:
            rows = unit.results.failures(run_id, after, page, until=span.until)
            return rows, rows[-1].position if len(rows) == page else None

        yield from self._pages(run_id, span, read, page_after)

    def _pages(
        self,
        run_id: UUID,
        span: Span,
        read: Callable[[UnitOfWork, int, int], tuple[list[Row], int | None]],
        page_after: Callable[[Sequence[Row]], int],
    ) -> Iterator[list[Row]]:
        after, page = span.after, page_after(())
        while True:
            with self._ledger.transaction() as unit:
                rows, more_after = read(unit, after, page)
                # After the items: they are deleted after their run, so none of them was missing.
                run = unit.runs.get(run_id)
                if run is None:
                    raise NotFound(
                        f"There is no run {run_id}, or it was deleted while it was read."
                    )
                if span.version not in {None, run.version}:
                    raise WrongState("The run was changed while it was read; read it again.")
            if rows:
                yield rows
            if more_after is None:
                return
            after, page = more_after, page_after(rows)


def _rows_of_block(before: Sequence[Produced | FailedItem]) -> int:
    """How many rows the next block has, by the length of those before."""
    if not before:
        return FIRST_PAGE
    bytes_a_row = sum(map(_bytes_of, before)) / len(before)
    return max(1, min(PAGE, 2 * len(before), int(BLOCK_BYTES / bytes_a_row)))


def _bytes_of(row: Produced | FailedItem) -> int:
    if isinstance(row, FailedItem):
        return ROW_BYTES + len(row.error) + len(row.detail or "")
    asked = ROW_BYTES + len(row.text or "")
    if row.vector is not None:
        return asked + row.vector.nbytes
    return asked + len(str((row.answer or {}).get("text") or ""))


def _models(unit: UnitOfWork, run: Run) -> Sequence[EmbeddingModel]:
    """Return the dimensions that the model has had, first the one that most vectors have."""
    models = unit.embeddings.dimensions_of(run.provider, run.model)
    if len(models) < 2:
        return models  # not counted, as that takes a while
    counts = {model.id: unit.results.count_vectors(run.id, model) for model in models}
    return sorted(
        (model for model in models if counts[model.id]), key=lambda model: -counts[model.id]
    )
