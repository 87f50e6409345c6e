"""The output of runs, read in the order of their items."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar
from uuid import UUID

from promptstack.repositories.models import EmbeddingModel
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound
from promptstack.services.validation.ids import read_id

PAGE = 2_000

Row = TypeVar("Row", Produced, FailedItem)


class RunResults:
    """Reads results and failures page by page. No transaction is open between two pages."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def produced(
        self, run_id: UUID | str, *, with_input: bool = False, after: int = 0, page: int = PAGE
    ) -> Iterator[Produced]:
        """Yield the results so far, after a position. Raises `NotFound`."""
        run_id = read_id(run_id, "run")
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        models: Sequence[EmbeddingModel] = []

        def read(unit: UnitOfWork, after: int) -> list[Produced]:
            nonlocal models
            if run.kind == RunKind.GENERATION:
                return unit.results.answers(
                    run.id, run.provider, run.model, after, page, with_text=with_input
                )
            models = models or _models(unit, run)
            if not models:
                return []
            return unit.results.vectors(run.id, models, after, page, with_text=with_input)

        yield from self._pages(run_id, read, after, page)

    def failed(
        self, run_id: UUID | str, *, after: int = 0, page: int = PAGE
    ) -> Iterator[FailedItem]:
        """Yield the failed items so far, after a position. Raises `NotFound`."""
        run_id = read_id(run_id, "run")

        def read(unit: UnitOfWork, after: int) -> list[FailedItem]:
            return unit.results.failures(run_id, after, page)

        yield from self._pages(run_id, read, after, page)

    def _pages(
        self, run_id: UUID, read: Callable[[UnitOfWork, int], list[Row]], after: int, page: int
    ) -> Iterator[Row]:
        while True:
            with self._ledger.transaction() as unit:
                rows = read(unit, after)
                # After the items: they are deleted after their run, so none of them was missing.
                if unit.runs.get(run_id) is None:
                    raise NotFound(
                        f"There is no run {run_id}, or it was deleted while it was read."
                    )
            yield from rows
            if len(rows) < page:
                return
            after = rows[-1].position

    def dimensions(self, run_id: UUID) -> int | None:
        """Return how many numbers a vector of the run has. None for a generation."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
            if run is None or run.kind != RunKind.EMBEDDING:
                return None
            models = _models(unit, run)
        return models[0].dimensions if models else None


def _models(unit: UnitOfWork, run: Run) -> Sequence[EmbeddingModel]:
    """Return the dimensions that the model has had, first the one that most vectors have."""
    models = unit.embeddings.dimensions_of(run.provider, run.model)
    if len(models) < 2:
        return models  # not counted, as that takes a while
    return sorted(models, key=lambda model: -unit.results.count_vectors(run.id, model))
