"""Group commit: one transaction writes the steps of all jobs that wait for one.

A transaction costs far more than what it writes. A step that comes while nothing is written is
written at once; a claim, and a call that no budget counts, then take one exchange and not the four
of a transaction. Steps that come meanwhile wait, and the next transaction writes them together.
After a transaction of several steps the next one waits for more, until 10 ms after it.

The jobs are coroutines on the event loop; one thread writes their steps. A step whose batch fails
runs in its own transaction, with the same statements, and waits there while PostgreSQL is away.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

from promptstack.config.errors import PromptStackError
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
from promptstack.services.budgets.admission import begin_calls
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
    """A step, and what came of it."""

    step: Step
    check: Callable[[], None] = _nothing
    """Raises where the step is not to be made any more."""
    is_alone: bool = False
    """Whether its batch failed, so that it runs in its own transaction."""
    result: Any = None
    error: BaseException | None = None
    is_over: "asyncio.Future[None] | None" = None
    """Done when its batch was written or has failed."""


class GroupCommit:
    """Makes steps of jobs, as many as wait in one transaction. All is called on the event loop."""

    def __init__(
        self,
        ledger: Ledger,
        retrying: RetryingLedger,
        worker_id: UUID,
        *,
        sleep: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._retrying = retrying
        self._worker_id = worker_id
        self._sleep = sleep
        self._thread = ThreadPoolExecutor(1, "group-commit")
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    @property
    def waiting_steps(self) -> int:
        """How many steps wait for the next transaction."""
        return len(self._waiting)

    async def claim(self, step: ClaimStep, *, is_late: bool = False) -> Claim | None:
        """Take a job; None when it can't be taken now. `is_late` are this worker's heartbeats."""
        claim: Claim | None = await self._commit(_Waiting(step, is_alone=is_late))
        return claim

    async def begin(self, step: BeginStep, check: Callable[[], None]) -> int:
        """Record a call that is about to leave, unless `check` raises; the attempt's id.

        Raises `ClaimLost`, and the error of a budget that doesn't pay for it. `check` runs in the
        thread that writes.
        """
        begun: Begun | PromptStackError | None = await self._commit(_Waiting(step, check))
        if isinstance(begun, PromptStackError):
            raise begun
        if begun is None:
            raise ClaimLost(f"The claim of job {step.claim.job_id} is lost; no call was made.")
        return begun.attempt_id

    async def succeed(self, step: SucceedStep) -> JobSnapshot | None:
        """Store an answer as its job's result; how the job stands then, None if it is deleted."""
        snapshot: JobSnapshot | None = await self._commit(_Waiting(step))
        return snapshot

    def close(self) -> None:
        """End the thread, once its transaction has ended."""
        self._thread.shutdown()

    async def _commit(self, mine: _Waiting) -> Any:
        if not mine.is_alone:
            loop = asyncio.get_running_loop()
            mine.is_over = loop.create_future()
            self._waiting.append(mine)
            if self._writing is None:
                self._writing = loop.create_task(self._write_batches())
            await mine.is_over
        if mine.is_alone:
            await self._retrying.write_async(lambda unit: self._write_alone(unit, mine))
        if mine.error is not None:
            raise mine.error
        return mine.result

    async def _write_batches(self) -> None:
        """Write batch after batch, until no step waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:MAX_STEPS], self._waiting[MAX_STEPS:]
                try:
                    await loop.run_in_executor(self._thread, self._write_all, batch)
                except BaseException:
                    # This worker closes. A step that was not written must not seem to be.
                    for waiting in batch:
                        waiting.is_alone = True
                    raise
                finally:
                    for waiting in batch:
                        if waiting.is_over is not None and not waiting.is_over.done():
                            waiting.is_over.set_result(None)
                if len(batch) > 1:
                    await self._sleep(GATHER_SECONDS)
        finally:
            self._writing = None

    def _write_all(self, steps: Sequence[_Waiting]) -> None:
        batch: list[_Waiting] = []
        for waiting in steps:
            try:
                waiting.check()
            except BaseException as error:  # noqa: BLE001 - it is raised in its own job
                waiting.error = error
            else:
                batch.append(waiting)
        if not batch:
            return
        try:
            if len(batch) == 1 and self._write_in_one_exchange(batch[0]):
                return
            with self._ledger.transaction() as unit:
                unit.limit_locks(LOCK_SECONDS)
                self._write(unit, batch)
        except BaseException:  # noqa: BLE001 - each step meets its own error in its own transaction
            for waiting in batch:
                waiting.is_alone = True

    def _write_in_one_exchange(self, mine: _Waiting) -> bool:
        """Make a step in one exchange with PostgreSQL; False where it takes a transaction.

        A client may wait for nothing but this job.
        """
        step = mine.step
        if isinstance(step, SucceedStep):
            return False
        with self._ledger.single() as unit:
            if isinstance(step, ClaimStep):
                claims = unit.steps.claim_batch([step], self._worker_id, lock_seconds=LOCK_SECONDS)
                mine.result = claims.get(step.key)
                return True
            # Calls that budgets count are left out.
            mine.result = unit.attempts.begin([step], lock_seconds=LOCK_SECONDS).get(step.key)
            return mine.result is not None

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
        self._write_kind(batch, BeginStep, partial(begin_calls, unit))

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
