"""What maintenance does for runs, every second: it ends the overdue and deletes the old."""

from collections.abc import Callable

from promptstack.repositories.run_models import RunState
from promptstack.repositories.session import Ledger
from promptstack.repositories.signs import RunSigns
from promptstack.services.errors import run_ending_codes
from promptstack.services.runs.lifecycle import EXPIRED, RunLifecycle, apart

ABANDONED_SECONDS = 3_600.0
PRUNED_AT_ONCE = 20_000
NOT_ACCEPTED = ("NOT_ACCEPTED", "Whoever handed the run in went away midway.")


class RunMaintenance:
    """Runs in every worker, also in several at once."""

    def __init__(
        self,
        ledger: Ledger,
        lifecycle: RunLifecycle,
        tend_batches: Callable[[RunSigns, float], None],
    ) -> None:
        """Take what ends batches, and deletes those that ended so many seconds ago."""
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._tend_batches = tend_batches

    def run_once(self, retention: float) -> None:
        """Bring runs on, end overdue and abandoned ones, and delete those that ended long ago.

        Raises `TransientLedgerError`. With a `retention` of 0 seconds, only what
        a person has deleted goes.
        """
        with self._ledger.statement() as statement:
            signs = statement.signs.of_runs(
                sorted(run_ending_codes()), ABANDONED_SECONDS, retention
            )
        if signs.overdue or signs.abandoned or signs.half_ended:
            self._end_left()
        self._lifecycle.tend(signs)
        self._tend_batches(signs, retention)
        if signs.old:
            self._prune(retention)

    def _end_left(self) -> None:
        with self._ledger.transaction() as unit:
            overdue = unit.run_maintenance.find_overdue()
            abandoned = unit.run_maintenance.find_abandoned(ABANDONED_SECONDS)
            half_ended = unit.run_maintenance.find_half_ended()
        for run_id in overdue:
            with apart(run_id):
                self._lifecycle.end(run_id, RunState.EXPIRED, *EXPIRED)
        for run_id in abandoned:
            with apart(run_id):
                self._lifecycle.end(run_id, RunState.FAILED, *NOT_ACCEPTED)
        for run in half_ended:
            with apart(run.id):
                self._lifecycle.cancel_shards(run)

    def _prune(self, retention: float) -> None:
        with self._ledger.transaction() as unit:
            if not unit.try_lock("prune"):
                return
            found = unit.run_maintenance
            pruned = found.next_pruned()
            if pruned is None and retention and found.prune(retention):
                pruned = found.next_pruned()
            if pruned is not None:
                deleted = unit.items.delete_of(
                    pruned.run_id, PRUNED_AT_ONCE, drops_vectors=pruned.drops_vectors
                )
                if deleted < PRUNED_AT_ONCE:
                    found.forget_pruned(pruned.run_id)
            if retention:
                unit.answers.prune(retention)
