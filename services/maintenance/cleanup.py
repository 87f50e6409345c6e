"""Deletes what is old."""

from promptstack.repositories.session import Ledger

STATEMENT_SECONDS = 10.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""
FORGET_WORKERS_SECONDS = 3_600.0


class Cleanup:
    """Forgets workers that died, reservations that nobody holds, and jobs and calls of long ago."""

    def __init__(self, ledger: Ledger, *, jobs_seconds: float, attempts_seconds: float) -> None:
        """Take how long ended jobs and the attempts of deleted ones are kept; 0 is for ever."""
        self._ledger = ledger
        self._jobs_seconds = jobs_seconds
        self._attempts_seconds = attempts_seconds

    def run_once(self) -> None:
        """Delete a batch of each."""
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if unit.try_lock("forget"):
                unit.maintenance.lose_calls(unit.workers.forget_dead(FORGET_WORKERS_SECONDS))
                unit.reservations.forget_idle()
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("prune"):
                return
            if self._jobs_seconds:
                unit.maintenance.prune_jobs(self._jobs_seconds)
            if self._attempts_seconds:
                unit.maintenance.prune_attempts(self._attempts_seconds)
