"""Runs the steps that put right what lost messages, brokers and workers left behind."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptstack.repositories.session import Ledger


@dataclass(frozen=True)
class Step:
    """Something to look after. `run` does it once, in every worker."""

    name: str
    run: Callable[[], object]
    rounds: int = 1
    """It is run in one of so many rounds: nobody waits for it."""
    is_woken: bool = False
    """Whether somebody may know before the next round that there is something to do."""


class Reconciler:
    """Steps that know nothing of each other.

    Every worker runs each of them in a thread of its own, most of them once a second: a slow one
    delays no other. A lock in the ledger lets one worker at a time do what two could do twice or
    what takes long; the other statements change only what is still as they found it.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def run_once(self) -> dict[str, object]:
        """Run every step, one after the other. Returns what each returned, by its name.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        return {step.name: step.run() for step in self.steps}


STEP_SECONDS = 2.0
"""After this long no other batch is deleted: the next round goes on."""
STATEMENT_SECONDS = 10.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""
FORGET_WORKERS_SECONDS = 3_600.0


class Cleanup:
    """Forgets workers that died, reservations that nobody holds, and what is old."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        jobs_seconds: float,
        attempts_seconds: float,
        audit_seconds: float = 0.0,
        keys_seconds: float = 0.0,
        deliveries_seconds: float = 0.0,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take how long ended jobs, attempts of deleted ones and audit entries are kept.

        `keys_seconds` is for the idempotency keys of what is no job, `deliveries_seconds` for
        events that were sent. 0 is for ever.
        """
        self._timer = timer
        self._ledger = ledger
        self._jobs_seconds = jobs_seconds
        self._attempts_seconds = attempts_seconds
        self._audit_seconds = audit_seconds
        self._keys_seconds = keys_seconds
        self._deliveries_seconds = deliveries_seconds

    def run_once(self) -> None:
        """Delete what is there, in batches."""
        began = self._timer()
        while self._delete_batch() and self._timer() - began < STEP_SECONDS:
            pass

    def _delete_batch(self) -> bool:
        """Delete a batch of each. Returns whether there may be more."""
        with self._ledger.statement() as statement:
            signs = statement.signs.of_cleanup(
                FORGET_WORKERS_SECONDS,
                self._jobs_seconds,
                self._attempts_seconds,
                self._audit_seconds,
                keys=self._keys_seconds,
                deliveries=self._deliveries_seconds,
                within=STATEMENT_SECONDS,
            )
        if signs.forgotten:
            self._forget()
        return signs.old and self._prune()

    def _forget(self) -> None:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if unit.try_lock("forget"):
                unit.maintenance.lose_calls(unit.workers.forget_dead(FORGET_WORKERS_SECONDS))
                unit.maintenance.lose_lone_calls(FORGET_WORKERS_SECONDS)
                unit.reservations.forget_idle()

    def _prune(self) -> bool:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("prune"):
                return False
            pruned = unit.files.prune()
            if self._jobs_seconds:
                pruned += unit.maintenance.prune_jobs(self._jobs_seconds)
            if self._attempts_seconds:
                pruned += unit.maintenance.prune_attempts(self._attempts_seconds)
            if self._audit_seconds:
                pruned += unit.audit.prune(self._audit_seconds)
            if self._keys_seconds:
                pruned += unit.idempotency_keys.prune(self._keys_seconds)
            if self._deliveries_seconds:
                pruned += unit.webhook_sending.prune(self._deliveries_seconds)
        return pruned > 0
