"""The runs API: hand one in, look at it, cancel it, try its failures again.

Nothing is paid for before every input was read and checked and `start` was called.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Unpack
from uuid import UUID

from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.services.audit.actions import Action
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound, WrongState
from promptstack.services.idempotency.claims import claim, made_before
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.runs.ended import EndedRuns, audit_run
from promptstack.services.runs.filters import RunFilters, checked_filter
from promptstack.services.runs.intake.estimates import Estimator, Weighed
from promptstack.services.runs.intake.new_run import (
    GenerationRunKeywords,
    RunDefaults,
    RunKeywords,
)
from promptstack.services.runs.intake.plans import plan_embedding, plan_generation
from promptstack.services.runs.intake.preparation import RunPreparation
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.views import Preflight, RunView
from promptstack.services.sources.reading import Source
from promptstack.services.validation.bounds import checked_limit
from promptstack.services.validation.ids import find_id, read_id

POLL_SECONDS = 0.1
LARGE_LOAD = 0.2
"""A share of a model's vectors. A run that adds more drops the index, and builds it at its end.
With 10% more vectors that takes 2.5 times as long as keeping it up, with 20% 0.8 times, with 100%
half as long (python -m benchmarks.index_load)."""


@dataclass(frozen=True)
class Beginning:
    """How a run begins, where its starter says more than that it does."""

    lifetime: float | None = None
    """Seconds until its deadline. None: as long as it had when it was prepared."""
    ends_as: RunState | None = None
    """It ends so at once, and nothing is asked."""


class BadInputs(InvalidInput):
    """Some inputs of a run can't be asked for; nothing was paid and nothing is kept."""

    code = "BAD_INPUTS"


class RunService(EndedRuns):
    """Accepts runs and answers for them."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        lifecycle: RunLifecycle,
        progress: RunProgress,
        estimator: Estimator,
        *,
        indexes: VectorIndexes,
        defaults: RunDefaults,
    ) -> None:
        super().__init__(ledger, lifecycle, progress, estimator, defaults)
        self._factory = factory
        self._preparation = RunPreparation(ledger, factory, estimator, defaults)
        self._indexes = indexes

    def embed(
        self,
        source: Source,
        *,
        skip_bad: bool = False,
        keyed: KeyedRequest | None = None,
        **how: Unpack[RunKeywords],
    ) -> RunView:
        """Embed every text of `source`; see `prepare_embedding`. Returns when it is accepted.

        Raises `BadInputs` if some can't be embedded. With `skip_bad`, those end as failed instead.
        A request with a key that has started its run returns it, and reads nothing.
        """
        return self._made_before(keyed) or self._accept(
            self.prepare_embedding(source, is_counted=False, **how), skip_bad, keyed
        )

    def generate(
        self,
        source: Source,
        *,
        skip_bad: bool = False,
        keyed: KeyedRequest | None = None,
        **how: Unpack[GenerationRunKeywords],
    ) -> RunView:
        """Ask for an answer to every prompt of `source`; see `prepare_generation` and `embed`."""
        return self._made_before(keyed) or self._accept(
            self.prepare_generation(source, is_counted=False, **how), skip_bad, keyed
        )

    def prepare_embedding(
        self, source: Source, *, is_counted: bool = True, **how: Unpack[RunKeywords]
    ) -> Preflight:
        """Read and check the texts of `source`, and say what embedding them comes to.

        A source may also hold requests of OpenAI's Batch API, which name the model. `is_counted`
        looks for what was paid for before. Call `start` or `discard` then. Raises `InvalidInput`.
        """
        plan = plan_embedding(self._factory, self._defaults, how)
        return self._preparation.prepare(source, plan, is_counted=is_counted)

    def prepare_generation(
        self, source: Source, *, is_counted: bool = True, **how: Unpack[GenerationRunKeywords]
    ) -> Preflight:
        """Read and check the prompts of `source`, and say what answering them comes to.

        Parameters in requests of OpenAI's Batch API hold where nothing else is said here. See
        `prepare_embedding`.
        """
        plan = plan_generation(self._factory, self._defaults, how, self._preferred_provider)
        return self._preparation.prepare(source, plan, is_counted=is_counted)

    def weigh_embedding(self, source: Source, **how: Unpack[RunKeywords]) -> Weighed:
        """Say what embedding the texts of `source` comes to; nothing is stored."""
        return self._preparation.weigh(source, plan_embedding(self._factory, self._defaults, how))

    def weigh_generation(self, source: Source, **how: Unpack[GenerationRunKeywords]) -> Weighed:
        """Say what answering the prompts of `source` comes to; nothing is stored."""
        plan = plan_generation(self._factory, self._defaults, how, self._preferred_provider)
        return self._preparation.weigh(source, plan)

    def _preferred_provider(self, user_id: UUID | None) -> str | None:
        if user_id is None:
            return None
        with self._ledger.transaction() as unit:
            user = unit.users.get(user_id)
            return user.preferred_provider if user else None

    def start(
        self,
        run_id: UUID | str,
        keyed: KeyedRequest | None = None,
        *,
        record: Callable[[UnitOfWork], Beginning | None] = lambda unit: None,
    ) -> RunView:
        """Start a prepared run. Raises `NotFound` and `WrongState`.

        Another request with the same key may have started its own meanwhile: that one is returned,
        and this one is left as it is. `record` runs first in the same transaction, and may say how
        the run begins.
        """
        run_id = read_id(run_id, "run")
        with self._ledger.transaction() as unit:
            how = record(unit) or Beginning()
            made = claim(unit, keyed, run_id)
            if made is not None:
                return self._view(unit, made)
            run = unit.runs.lock(run_id)
            if run is None:
                raise NotFound(f"There is no run {run_id}.")
            if run.state != RunState.PREPARING:
                raise WrongState(f"The run is {run.state}; only a prepared one can be started.")
            bad = unit.outcomes.count_outcomes(run_id).failed
            unit.runs.change(run_id, Change(failed=bad - run.failed))
            started = unit.runs.start(run_id, lifetime=how.lifetime) or run
            if how.ends_as is None:
                self._make_room(unit, started)
            else:
                started = self._lifecycle.end_unserved(unit, started, how.ends_as)
        self._progress.publish(started)
        self._lifecycle.wake()
        return RunView.of(started)

    def discard(self, run_id: UUID | str) -> None:
        """Delete a run that was prepared and not started."""
        self._preparation.discard(read_id(run_id, "run"))

    def find(self, given: str) -> UUID:
        """Return the id of the only run whose id begins with `given`. Raises as `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.runs, "run", given)

    def get_many(self, owner: UUID | None = None, limit: int = 20) -> list[RunView]:
        """Return the newest runs."""
        return self.get_page(PageQuery(checked_limit(limit)), owner).rows

    def get_page(
        self, asked: PageQuery, owner: UUID | None = None, **wanted: Unpack[RunFilters]
    ) -> Page[RunView]:
        """Return a page of runs, newest first. Raises `InvalidInput`."""
        found = checked_filter(owner, wanted)
        with self._ledger.transaction() as unit:
            return unit.runs.find(asked, found).of(RunView.of)

    def cancel(
        self, run_id: UUID | str, owner: UUID | None = None, *, actor: Actor | None = None
    ) -> RunView:
        """Stop a run and keep its results. Where it is not the `actor`'s own, this is audited.

        Raises `NotFound` and `WrongState`.
        """
        run = self._owned(run_id, owner)
        record = partial(audit_run, Action.RUN_CANCELLED, run, actor)
        if self._lifecycle.end(run.id, RunState.CANCELLED, record=record) is None:
            raise WrongState(f"The run has ended already: it is {run.state}.")
        return self.get(run_id)

    def wait(self, run_id: UUID | str, timeout: float = math.inf) -> RunView:
        """Wait until the run has ended. Raises `TimeoutError` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            run = self.get(run_id)
            if run.state.is_final:
                return run
            if time.monotonic() > deadline:
                raise TimeoutError(f"The run is {run.state} after {timeout:g} s.")
            time.sleep(POLL_SECONDS)

    def _accept(self, preflight: Preflight, skip_bad: bool, keyed: KeyedRequest | None) -> RunView:
        if preflight.bad and not skip_bad:
            self.discard(preflight.run_id)
            raise BadInputs(_explain(preflight))
        try:
            started = self.start(preflight.run_id, keyed)
        except IdempotencyConflict:
            self.discard(preflight.run_id)
            raise
        if started.id != preflight.run_id:
            self.discard(preflight.run_id)
        return started

    def _made_before(self, keyed: KeyedRequest | None) -> RunView | None:
        """Return the run that this request has started before."""
        if keyed is None:
            return None
        with self._ledger.transaction() as unit:
            made = made_before(unit, keyed)
            return None if made is None else self._view(unit, made)

    @staticmethod
    def _view(unit: UnitOfWork, run_id: UUID) -> RunView:
        run = unit.runs.get(run_id)
        if run is None:
            raise NotFound(
                f"This request has started run {run_id} before, which is deleted. Send a new "
                "idempotency key to start another one."
            )
        return RunView.of(run)

    def _make_room(self, unit: UnitOfWork, run: Run) -> None:
        """Drop the model's index before many vectors come. The run's end builds it again.

        It happens in the transaction of the start: every end after a start builds the index.
        """
        if run.kind != RunKind.EMBEDDING or "dimensions" in run.parameters:
            return
        model = unit.embeddings.find_model(run.provider, run.model)
        if model is not None and run.total > LARGE_LOAD * unit.embeddings.estimate(model):
            self._indexes.drop(unit, model)


def _explain(preflight: Preflight) -> str:
    """Say in one sentence what is wrong with the inputs of a run."""
    first = "; ".join(
        f"{fault.position}: {fault.reason.rstrip('.')}" for fault in preflight.faults[:3]
    )
    again = f" {preflight.duplicates} have an id that came before." if preflight.duplicates else ""
    return (
        f"{preflight.bad} of {preflight.items} inputs can't be asked for, and nothing was paid."
        f"{again} First: {first or 'see the ids'}. Mend them, or go on without them (skip_bad)."
    )
