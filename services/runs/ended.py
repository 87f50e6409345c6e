"""Runs that have ended: try again what failed, go on with what was not tried, delete them."""

from decimal import Decimal
from uuid import UUID

from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.key_terms import check_came_with
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, NotFound, NotYet, WrongState
from promptstack.services.runs.intake.estimates import Estimator
from promptstack.services.runs.intake.new_run import RunDefaults, RunOptions
from promptstack.services.runs.lifecycle import RunLifecycle
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.views import RunView
from promptstack.services.validation.bounds import refused_in_words
from promptstack.services.validation.ids import read_id

SOON_SECONDS = 1.0
"""After which to try again what an end that is not quite over does not allow yet."""


class EndedRuns:
    """Starts runs again, and deletes them."""

    def __init__(
        self,
        ledger: Ledger,
        lifecycle: RunLifecycle,
        progress: RunProgress,
        estimator: Estimator,
        defaults: RunDefaults,
    ) -> None:
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._progress = progress
        self._estimator = estimator
        self._defaults = defaults

    def get(self, run_id: UUID | str, owner: UUID | None = None) -> RunView:
        """Read a run from the ledger. Raises `NotFound`, also for another owner's run."""
        return RunView.of(self._owned(run_id, owner))

    def retry(
        self,
        run_id: UUID | str,
        owner: UUID | None = None,
        max_cost_usd: Decimal | None = None,
        *,
        only_key: UUID | None = None,
        actor: Actor | None = None,
    ) -> RunView:
        """Try again items that failed at a provider or were never tried.

        Items that succeeded are not paid for again, and bad inputs stay bad. Where the run is not
        the `actor`'s own, this is audited. With `only_key` it must have come with that API key.
        Raises `NotFound`, `NotPermitted` and `WrongState`.
        """
        return self._start_again(
            self._owned(run_id, owner).id,
            Action.RUN_RETRIED,
            max_cost_usd,
            only_key=only_key,
            actor=actor,
        )

    def resume(
        self,
        run_id: UUID | str,
        owner: UUID | None = None,
        max_cost_usd: Decimal | None = None,
        *,
        only_key: UUID | None = None,
        actor: Actor | None = None,
    ) -> RunView:
        """Go on with a run that ended before all its items were tried; what failed stays failed.

        Otherwise as `retry`.
        """
        return self._start_again(
            self._owned(run_id, owner).id,
            Action.RUN_RESUMED,
            max_cost_usd,
            only_key=only_key,
            actor=actor,
        )

    def _start_again(
        self,
        run_id: UUID,
        action: Action,
        max_cost_usd: Decimal | None,
        *,
        only_key: UUID | None,
        actor: Actor | None,
    ) -> RunView:
        if max_cost_usd is not None:
            with refused_in_words():
                max_cost_usd = RunOptions(max_cost_usd=max_cost_usd).max_cost_usd
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None:
                raise NotFound(f"There is no run {run_id}.")
            check_ended(run, "it can be started again when it has ended")
            check_came_with(run.api_key_id, only_key)
            if run.started_at is None:
                raise WrongState(
                    "The run was never started, so it may lack inputs; hand it in anew."
                )
            if max_cost_usd is not None:
                self._estimator.check_limit(run.kind, run.provider, run.model, run.parameters)
            is_retry = action is Action.RUN_RETRIED
            reopened = unit.outcomes.reopen_failed(run_id) if is_retry else 0
            if not reopened and run.succeeded + run.failed >= run.total:
                raise WrongState(
                    "The run has nothing left to try: no item failed at a provider."
                    if is_retry
                    else "Every item of the run was tried; `retry` tries those that failed again."
                )
            if max_cost_usd is not None and run.kind == RunKind.GENERATION:
                _check_items_bounded(unit, run_id)
            unit.runs.change(run_id, Change(failed=-reopened))
            limit = {} if max_cost_usd is None else {"max_cost_usd": max_cost_usd}
            audit_run(action, run, actor, unit)
            lifetime = unit.batches.reopen(run_id) or self._defaults.expires_seconds
            started = unit.runs.start(run_id, lifetime=lifetime, **limit)
        if started is not None:
            self._progress.publish(started)
        self._lifecycle.wake()
        return self.get(run_id)

    def delete(
        self,
        run_id: UUID | str,
        owner: UUID | None = None,
        *,
        only_key: UUID | None = None,
        actor: Actor | None = None,
    ) -> None:
        """Delete a run that has ended, its items, and the vectors that nobody else uses.

        It is gone at once, and its items are within minutes. Where the run is not the `actor`'s
        own, this is audited. Raises as `retry`.
        """
        run_id = self._owned(run_id, owner).id
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None:
                raise NotFound(f"There is no run {run_id}.")
            check_ended(run, "cancel it, and delete it when it has ended")
            check_came_with(run.api_key_id, only_key)
            if unit.run_maintenance.is_busy(run_id) or unit.batches.is_unsettled(run_id):
                raise NotYet(
                    "The run has ended, and its last calls, its search index or its batch are not "
                    "over yet; try again in a while.",
                    retry_after=SOON_SECONDS,
                )
            audit_run(Action.RUN_DELETED, run, actor, unit)
            unit.run_maintenance.drop(run_id, drops_vectors=True)

    def _owned(self, run_id: UUID | str, owner: UUID | None) -> Run:
        run_id = read_id(run_id, "run")
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None or (owner is not None and run.user_id != owner):
            raise NotFound(f"There is no run {run_id}.")
        return run


def _check_items_bounded(unit: UnitOfWork, run_id: UUID) -> None:
    if not unit.items.are_bounded(run_id):
        raise InvalidInput(
            "A limit of the cost needs max_tokens, and no options of the provider, and some lines "
            "of the run ask otherwise: start it again without a limit."
        )


def check_ended(run: Run, advice: str) -> None:
    """Raise `WrongState` for a run that goes on, and `NotYet` for one whose items have all ended.

    A run may go on for hours; who has seen its last item end need not wait for that long.
    """
    if run.state == RunState.FINALIZING:
        raise NotYet(
            "The run is about to end: its items have, and its search index or its output is being "
            "written; try again in a while.",
            retry_after=SOON_SECONDS,
        )
    if not RunState(run.state).is_final:
        raise WrongState(f"The run goes on; {advice}.")


def audit_run(action: Action, run: Run, actor: Actor | None, unit: UnitOfWork) -> None:
    """Record what somebody does to a run of somebody else."""
    if actor is not None and run.user_id != actor.user_id:
        AuditLog.record(
            unit,
            actor=actor,
            action=action,
            object=ObjectKind.RUN.of(run.id),
            detail={"owner_id": run.user_id, "kind": run.kind, "state": run.state},
        )
