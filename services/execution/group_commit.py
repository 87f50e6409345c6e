"""Group commit: one transaction writes the steps of all jobs that wait for one.

A transaction costs far more than what it writes. The first step to come leads: it commits at once.
Steps that come meanwhile wait, and the next transaction writes them together. After a transaction
of several steps the next one waits for more, until 10 ms after it; a step that comes while nothing
is written does not wait.

A step whose batch fails runs in its own transaction, with the same statements, and waits there
while PostgreSQL is away.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from uuid import UUID

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import (
    BeginStep,
    Begun,
    Claim,
    ClaimStep,
    JobSnapshot,
    SucceedStep,
)
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.retrying_ledger import RetryingLedger

MAX_STEPS = 200
"""Steps in one transaction."""
GATHER_SECONDS = 0.01
"""From one transaction of several steps to the next."""
LOCK_SECONDS = 0.2
"""Longest wait for a job that another transaction changes: all steps of a batch wait with it."""

Step = ClaimStep | BeginStep | SucceedStep


def _nothing() -> None:
    """Check nothing."""


@dataclass(eq=False)
class _Waiting:
    """A step, and the thread that waits for it."""

    step: Step
    check: Callable[[], None] = _nothing
    """Raises where the step is not to be made any more."""
    is_over: threading.Event = field(default_factory=threading.Event)
    is_leader: bool = False
    is_alone: bool = False
    """Whether its batch failed, so that it runs in its own transaction."""
    result: Any = None
    error: BaseException | None = None


class GroupCommit:
    """Makes steps of jobs, as many as wait in one transaction."""

    def __init__(
        self,
        ledger: Ledger,
        retrying: RetryingLedger,
        worker_id: UUID,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ledger = ledger
        self._retrying = retrying
        self._worker_id = worker_id
        self._sleep = sleep
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []
        self._is_led = False
        self._next_at = 0.0

    @property
    def waiting_steps(self) -> int:
        """How many steps wait for the next transaction."""
        with self._lock:
            return len(self._waiting)

    def claim(self, step: ClaimStep, *, is_late: bool = False) -> Claim | None:
        """Take a job; None when it can't be taken now. `is_late` are this worker's heartbeats."""
        claim: Claim | None = self._commit(_Waiting(step, is_alone=is_late))
        return claim

    def begin(self, step: BeginStep, check: Callable[[], None]) -> int:
        """Record a call that is about to leave, unless `check` raises; the attempt's id.

        Raises `ClaimLost`.
        """
        begun: Begun | None = self._commit(_Waiting(step, check))
        if begun is None:
            raise ClaimLost(f"The claim of job {step.claim.job_id} is lost; no call was made.")
        return begun.attempt_id

    def succeed(self, step: SucceedStep) -> JobSnapshot | None:
        """Store an answer as its job's result; how the job stands then, None if it is deleted."""
        snapshot: JobSnapshot | None = self._commit(_Waiting(step))
        return snapshot

    def _commit(self, mine: _Waiting) -> Any:
        if not mine.is_alone:
            self._join(mine)
        if mine.is_alone:
            self._retrying.write(lambda unit: self._write_alone(unit, mine))
        if mine.error is not None:
            raise mine.error
        return mine.result

    def _join(self, mine: _Waiting) -> None:
        """Wait until the step's batch is over; lead it if nobody else does."""
        with self._lock:
            self._waiting.append(mine)
            mine.is_leader = not self._is_led
            self._is_led = True
        if not mine.is_leader:
            mine.is_over.wait()
        if mine.is_leader:
            self._lead()

    def _lead(self) -> None:
        """Make the steps of all who wait now, and let the next one lead."""
        early = self._next_at - time.monotonic()
        if early > 0:
            self._sleep(early)
        with self._lock:
            # In their order, so that the leader is always among those it leads.
            led, self._waiting = self._waiting[:MAX_STEPS], self._waiting[MAX_STEPS:]
        try:
            self._write_all(led)
        finally:
            if len(led) > 1:
                self._next_at = time.monotonic() + GATHER_SECONDS
            with self._lock:
                heir = self._waiting[0] if self._waiting else None
                self._is_led = heir is not None
            if heir is not None:
                heir.is_leader = True
                heir.is_over.set()
            for waiting in led:
                waiting.is_over.set()

    def _write_all(self, led: Sequence[_Waiting]) -> None:
        batch: list[_Waiting] = []
        for waiting in led:
            try:
                waiting.check()
            except BaseException as error:  # noqa: BLE001 - it is raised in its own thread
                waiting.error = error
            else:
                batch.append(waiting)
        if not batch:
            return
        try:
            with self._ledger.transaction() as unit:
                unit.limit_locks(LOCK_SECONDS)
                self._write(unit, batch)
        except BaseException:  # noqa: BLE001 - each step meets its own error in its own transaction
            for waiting in batch:
                waiting.is_alone = True

    def _write_alone(self, unit: UnitOfWork, mine: _Waiting) -> None:
        mine.check()
        self._write(unit, [mine])
        if isinstance(mine.step, ClaimStep):
            # A worker that can claim is alive. If its heartbeats were late, its jobs would be
            # freed at once, and paid for again. Last: a claim may wait for its job's row, and must
            # not hold up the heartbeat meanwhile.
            unit.workers.refresh(self._worker_id)

    def _write(self, unit: UnitOfWork, batch: Sequence[_Waiting]) -> None:
        claim = partial(unit.steps.claim_batch, worker_id=self._worker_id)
        self._write_kind(batch, ClaimStep, claim)
        self._write_kind(batch, SucceedStep, unit.steps.succeed_batch)
        self._write_kind(batch, BeginStep, unit.attempts.begin)

    def _write_kind(
        self,
        batch: Sequence[_Waiting],
        kind: type[Step],
        write: Callable[[list[Any]], Mapping[Any, Any]],
    ) -> None:
        mine = [one for one in batch if isinstance(one.step, kind)]
        # One statement changes a job once: further steps of a job run in their own transactions.
        chosen = {one.step.key: one for one in reversed(mine)}
        for waiting in mine:
            waiting.is_alone = waiting.is_alone or chosen[waiting.step.key] is not waiting
        if chosen:
            results = write([one.step for one in chosen.values()])
            for key, waiting in chosen.items():
                waiting.result = results.get(key)
