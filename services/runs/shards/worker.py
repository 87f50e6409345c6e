"""A shard's work: keep many calls under way, and store together what they bring."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from promptstack.config.setting_types import TierWeights
from promptstack.repositories.errors import ClaimLost, LedgerRefused, TransientLedgerError
from promptstack.repositories.run_models import Run
from promptstack.services.errors import BudgetReached, EmbeddedElsewhere
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.bytes_in_flight import BytesInFlight
from promptstack.services.execution.content_calls import Call
from promptstack.services.execution.job_context import JobContext
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.runs.shards.batch import Batch, CommitResult
from promptstack.services.runs.shards.budget import RunBudget
from promptstack.services.runs.shards.call_pool import (
    CallAnswered,
    CallFailed,
    CallPermitted,
    CallPool,
)
from promptstack.services.runs.shards.cut_off import CutOff
from promptstack.services.runs.shards.decisions import Decision, Decisions, Outcome
from promptstack.services.runs.shards.progress import ShardProgress
from promptstack.services.runs.shards.queue import CallQueue
from promptstack.services.runs.shards.slots import ShardSlots, WorkerSlots
from promptstack.services.runs.shards.store import ShardStore
from promptstack.services.runs.shards.validation import ValidationLimits, ValidationQueue, rejected
from promptstack.services.runs.shards.workload import Workload

LOOK_SECONDS = 0.05
"""Between two looks for a free slot, while other shards of the run have them all."""
LOOK_AGAIN_SECONDS = 1.0
SHARED_POLL_SECONDS = 0.25


@dataclass(frozen=True)
class ShardTools:
    """What all shards of a worker use."""

    calls: LimitedCalls
    slots: WorkerSlots
    memory: BytesInFlight
    backoff: Backoff
    show_run: Callable[[Run], None]
    """Told the run's sums when they have changed."""
    patience_seconds: float = 3.0
    """How long a shard with nothing under way waits in a worker; then it waits in the job queue."""
    weights: TierWeights = field(default_factory=TierWeights)
    validation_limits: ValidationLimits = field(default_factory=ValidationLimits)
    clock: Callable[[], float] = time.monotonic


class ShardWorker:
    """Works on one shard, in a thread of its own."""

    def __init__(self, job: JobContext, run: Run, workload: Workload, tools: ShardTools) -> None:
        clock, patience = tools.clock, tools.patience_seconds
        run_slots = tools.slots.of(run, tools.weights.of(job.claim.tier))
        self._job = job
        self._workload = workload
        self._budget = RunBudget(job.claim, run, workload, patience, clock)
        self._store = ShardStore(job.claim, run, workload, self._budget)
        self._pool = CallPool(workload, tools.calls, run_slots.concurrency)
        self._slots = ShardSlots(run_slots, tools.memory, workload.bytes_of, self._pool.wake)
        self._queue = CallQueue(clock)
        self._reserved_elsewhere: list[Call] = []
        self._validation = ValidationQueue(workload, tools.validation_limits, clock)
        self._decisions = Decisions(run.max_retries, tools.backoff)
        self._cut_off = CutOff(job)
        self._progress = ShardProgress(job, tools.show_run, clock)
        self._clock = clock
        self._patience_seconds = patience
        self._idle_since: float | None = None

    def run(self) -> dict[str, int]:
        """Bring every open item of the shard to its outcome; returns its numbers of items.

        Raises `ClaimLost`, `HandedBack`, `DeadlinePassed`, an error that ends the whole run,
        and the cause of a wait that is too long for a worker.
        """
        self._find_open()
        self._pool.wait_until_running(self._job.handle.begin(self._pool.run()))
        try:
            while self._has_work():
                self._cut_off.check()
                self._request_permits()
                self._settle(self._next_outcomes())
        finally:
            try:
                self._pool.end()
                self._close()
            finally:
                self._slots.release()
        self._cut_off.conclude(is_done=self._progress.is_done)
        return self._progress.counts

    def _find_open(self) -> None:
        """Queue what is open; what was paid for before ends at once."""
        found = self._job.ledger.write(self._store.find_open)
        self._progress.total = found.total
        # Not in the transaction, as it reads all texts: see `repositories.timeouts`.
        self._queue.add(self._workload.calls(found.contents))
        self._progress.add(found.ended, found.run)

    def _has_work(self) -> bool:
        if self._cut_off.may_begin:
            return bool(self._slots.in_use or self._queue or self._reserved_elsewhere)
        # Wait for the calls that were sent, as they are paid for, and not for the others.
        self._pool.hold()
        is_sent = any(map(self._pool.has_left, self._slots.recorded))
        return is_sent or (bool(self._slots.waiting) and not self._job.handle.is_closing)

    def _request_permits(self) -> None:
        """Ask the limiter for as many calls as there are slots, and memory."""
        if not self._cut_off.may_begin:
            self._slots.stop_asking()
            self._slots.note_left(0)
            return
        free = min(self._slots.free(), self._queue.count_ready())
        calls = [
            part for call in self._queue.take(free) for part in self._workload.split_to_fit(call)
        ]
        taken = self._slots.take(calls)
        self._queue.put_back(calls[taken:])
        self._slots.note_left(self._queue.count_ready())
        self._pool.request_permits(calls[:taken])

    def _next_outcomes(self) -> list[Outcome]:
        """Wait for events, validate their answers, and decide about their failures."""
        if self._cut_off.is_urgent:
            self._validation.hurry()
        if self._validation:
            self._validation.add(self._pool.events_now())
        else:
            self._validation.add(self._pool.events(self._wait_seconds(), self._slots.in_use))
        return self._decisions.decide_all(self._validation.take())

    def _wait_seconds(self) -> float:
        """How long to wait for events. Raises the cause of a wait that is too long."""
        wait, cause = self._queue.wait()
        wait = max(LOOK_SECONDS, wait)
        if self._slots.in_use:
            self._idle_since = None
            return min(wait, LOOK_AGAIN_SECONDS) if self._queue else LOOK_AGAIN_SECONDS
        if not self._cut_off.may_begin:
            return 0.0
        now = self._clock()
        self._idle_since = self._idle_since or now
        if not self._queue:
            self._take_over()
            wait = SHARED_POLL_SECONDS
            cause = EmbeddedElsewhere(
                "Another job asks for the same contents; the shard waits for them.",
                retry_after=1.0,
            )
        if cause is not None and max(wait, now - self._idle_since) > self._patience_seconds:
            raise cause
        return min(wait, LOOK_AGAIN_SECONDS)

    def _take_over(self) -> None:
        """End what others have paid for by now, and queue what they have given up."""
        calls = self._reserved_elsewhere
        found = self._job.ledger.write(lambda unit: self._store.take_over(unit, calls))
        self._queue.add(found.ours)
        self._reserved_elsewhere = found.elsewhere
        self._progress.add(found.ended, found.run)

    def _settle(self, outcomes: Sequence[Outcome]) -> None:
        """Store what came and record what is to leave, in one transaction; then act on it."""
        if not outcomes:
            return
        batch = Batch(outcomes, may_begin=self._cut_off.may_begin)
        permits = [one.permit for one in batch.permitted]
        done, total = self._progress.done, self._progress.total
        try:
            self._budget.prepare(batch.permitted)
            result = self._job.ledger.write(
                lambda unit: self._store.write(unit, batch, done, total)
            )
        except ClaimLost:
            raise  # what came is settled
        except TransientLedgerError:
            self._pool.give_back(permits)
            raise
        except Exception as error:
            # One answer that can't be stored must not sink the others, which are paid for.
            if len(outcomes) > 1:
                self._settle_one_by_one(outcomes)
            elif batch.answered:
                self._settle(self._decisions.decide_all([rejected(batch.answered[0], error)]))
            else:
                self._pool.give_back(permits)
                raise
        else:
            # Outside of the `try`: what is committed must not be stored or sent again.
            self._act(batch, result)

    def _settle_one_by_one(self, outcomes: Sequence[Outcome]) -> None:
        raised: Exception | None = None
        for number, outcome in enumerate(outcomes):
            try:
                self._settle([outcome])
            except (TransientLedgerError, LedgerRefused):
                # Not even an error can be written.
                rest = [outcome.event for outcome in outcomes[number + 1 :]]
                self._pool.give_back([one.permit for one in rest if isinstance(one, CallPermitted)])
                raise
            except Exception as error:  # noqa: BLE001 - raised once all are settled
                raised = raised or error
        if raised is not None:
            raise raised

    def _act(self, batch: Batch, result: CommitResult) -> None:
        """Act on what is committed."""
        self._slots.update(
            permitted=[one.call for one in batch.permitted],
            refused=[one.call for one in batch.refused],
            settled=batch.settled,
            recorded=result.recorded,
        )
        self._pool.forget(batch.settled)
        self._pool.make(result.recorded, self._job.handle.seconds_left())
        self._pool.give_back([one.permit for one in result.unsent])
        if batch.answered:
            self._decisions.note_answers()
        for decision in batch.decisions:
            self._follow(decision)
        self._reserved_elsewhere += result.reserved_elsewhere
        if result.is_run_over:
            self._cut_off.note_run_over()
        try:
            self._budget.wait(result, self._queue, has_under_way=bool(self._slots.recorded))
        except BudgetReached as error:
            self._cut_off.end_run(error)
        self._progress.add(result.ended, result.run)
        if not result.is_ours:
            raise ClaimLost(f"Shard {self._job.claim.job_id} is no longer this attempt's.")

    def _follow(self, decision: Decision) -> None:
        """Do what was decided about a failure."""
        error = self._decisions.error_of_run(decision, len(self._slots.recorded))
        if error is not None:
            self._cut_off.end_run(error)
        # At the front: it shows soon whether one content fails or all of them.
        self._queue.put_back(decision.parts)
        again = decision.retried or decision.delayed
        if again is not None and decision.delay is not None:
            self._queue.delay(again, decision.delay, decision.error)
        elif again is not None:
            # The limiter has no room for any call now.
            self._queue.put_back([again])
            self._slots.shrink()
            wait = decision.error.retry_after or LOOK_SECONDS
            wait = min(wait, LOOK_AGAIN_SECONDS) if self._slots.in_use else wait
            self._queue.hold(wait, decision.error)

    def _close(self) -> None:
        """Store what came last, and record the calls that were cut off."""
        self._validation.add(self._pool.events_now())
        events = self._validation.drain()
        self._pool.give_back([one.permit for one in events if isinstance(one, CallPermitted)])
        came = [one for one in events if isinstance(one, CallAnswered | CallFailed)]
        try:
            with suppress(ClaimLost):  # what came is settled; what was cut off is not
                self._settle(self._decisions.decide_all(came))
        finally:
            self._record_cut_off()

    def _record_cut_off(self) -> None:
        cut = list(self._slots.recorded)
        sent = [one for one in cut if self._pool.has_left(one)]
        unsent = [one for one in cut if not self._pool.has_left(one)]
        self._pool.give_back([one.permit for one in unsent])
        if cut:
            self._job.ledger.write(lambda unit: self._store.cut_off(unit, sent, unsent))
