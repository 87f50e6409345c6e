"""The output of runs, streamed in the order of their items."""

from collections.abc import Iterator
from uuid import UUID

from repositories.run_models import Run, RunKind
from repositories.run_results import ResultRow
from repositories.session import Ledger, UnitOfWork
from services.errors import NotFound
from services.export.items import FailedItem, Produced

PAGE = 2_000


class RunResults:
    """Reads what a run came to, a page at a time: no transaction is open between two."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def produced(self, run_id: UUID, *, with_input: bool = False) -> Iterator[Produced]:
        """What has succeeded so far. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(f"There is no run {run_id}.")
        after = 0
        while True:
            with self._ledger.transaction() as unit:
                page = _page(unit, run, after, with_input)
            for row in page:
                yield Produced(
                    row.position, row.custom_id, row.attributes, row.text, row.vector, row.answer
                )
            if len(page) < PAGE:
                return
            after = page[-1].position

    def failed(self, run_id: UUID) -> Iterator[FailedItem]:
        """What has failed so far."""
        after = 0
        while True:
            with self._ledger.transaction() as unit:
                page = unit.results.failures(run_id, after, PAGE)
            for row in page:
                yield FailedItem(
                    row.position, row.custom_id, row.code, row.error, row.detail, row.attributes
                )
            if len(page) < PAGE:
                return
            after = page[-1].position

    def dimensions(self, run_id: UUID) -> int | None:
        """How many numbers a vector of the run has; None of a generation."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
            if run is None or run.kind != RunKind.EMBEDDING:
                return None
            model = unit.embeddings.find_model(run.provider, run.model)
        return None if model is None else model.dimensions


def _page(unit: UnitOfWork, run: Run, after: int, with_input: bool) -> list[ResultRow]:
    if run.kind == RunKind.GENERATION:
        return unit.results.answers(
            run.id, run.provider, run.model, after, PAGE, with_text=with_input
        )
    model = unit.embeddings.find_model(run.provider, run.model)
    if model is None:
        return []
    return unit.results.vectors(run.id, model, after, PAGE, with_text=with_input)
