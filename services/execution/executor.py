"""A job's whole way through a worker, from its message to its outcome, from top to bottom.

    claim -> context -> the handler of its kind -> store the result -> tell how the job stands
                                |
                                +-> retry later, fail, expire or hand back, where there is none

Each step is a transaction of its own, and no session is open during a provider call. Every change
of the job checks its claim first. A job is a coroutine on the event loop.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import ClaimLost, TransientLedgerError
from promptstack.repositories.jobs.records import Claim, ClaimStep, JobSnapshot, SucceedStep
from promptstack.repositories.models import JobKind, JobState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import DeadlinePassed
from promptstack.services.execution.active_jobs import ActiveJobs, HandedBack
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.ends import EndTeller
from promptstack.services.execution.generation import result_of
from promptstack.services.execution.group_commit import GroupCommit
from promptstack.services.execution.heartbeat import Heartbeat
from promptstack.services.execution.job_context import JobContext, OnProgress
from promptstack.services.execution.job_slots import JobSlots
from promptstack.services.execution.late_checks import LateChecks
from promptstack.services.execution.provider_calls import CallOutcome, ProviderCalls, known
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.llm.answers import LLMResponse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job when a worker was done with its message."""

    state: JobState | None
    """None if there is nothing to do for this message: the job is unknown, taken, or not due."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Numbers and names, and never content: the result backend keeps it."""
    error: str = ""
    retry_in: float | None = None
    """Seconds until the next try, if the job went back to the queue."""
    is_followed: bool = False
    """Whether another service's Celery has still to be told its end."""

    @property
    def is_end(self) -> bool:
        """Whether the job has ended."""
        return self.state is not None and self.state.is_final


NOT_OURS = JobOutcome(state=None)

Result = CallOutcome[LLMResponse] | Mapping[str, object] | None
"""What a handler returns: the outcome of the job's one call, or the job's result. None if it has
stored the result itself, together with other rows."""


def _nothing() -> None:
    """Do nothing."""


def _begin(what_follows: Callable[[], None]) -> None:
    """Begin what follows a job. It has ended, whatever comes of that."""
    try:
        what_follows()
    except Exception:
        logger.exception("what follows a job could not begin")


@dataclass(frozen=True)
class Handler:
    """Does the jobs of one kind."""

    do: Callable[[JobContext], Awaitable[Result]]
    after: Callable[[], None] = _nothing
    """Called on the event loop when such a job has left this worker: it may begin something
    elsewhere, for which the job doesn't wait."""


class Executor:
    """Runs jobs of any kind under their claim."""

    def __init__(
        self,
        ledger: RetryingLedger,
        group: GroupCommit,
        active_jobs: ActiveJobs,
        handlers: Mapping[JobKind, Handler],
        calls: ProviderCalls,
        *,
        late_checks: LateChecks,
        slots: JobSlots,
        progress: ProgressService,
        ends: EndTeller,
        backoff: Backoff,
        heartbeat: Heartbeat,
    ) -> None:
        self._ledger = ledger
        self._group = group
        self._active_jobs = active_jobs
        self._handlers = handlers
        self._calls = calls
        self._late_checks = late_checks
        self._slots = slots
        self._progress = progress
        self._ends = ends
        self._backoff = backoff
        self._heartbeat = heartbeat

    async def run(
        self, job_id: UUID, on_progress: OnProgress, published_at: datetime | None = None
    ) -> JobOutcome:
        """Claim a job, do it, and store what became of it.

        `published_at` is the time of the job's message, by the ledger's clock. Does not raise the
        job's errors: the outcome has them. If the ledger is away until this worker stops, another
        worker's reconciler frees the job, and the outcome says so.
        """
        with self._active_jobs.enter(job_id) as handle:
            try:
                claim = await self._claim(job_id, published_at)
                if claim is None:
                    return self._outcome(await self._snapshot(job_id))
                handle.claimed(claim)
                job = JobContext(claim, handle, self._ledger, self._progress, on_progress)
                handler = self._handlers[claim.kind]
                stored = await self._do(job, handler)
                outcome = self._outcome(stored or await self._snapshot(job_id))
                if job.text is not None and outcome.state is not None and outcome.state.is_final:
                    job.text.end()
            except TransientLedgerError as error:
                return JobOutcome(JobState.QUEUED, error=f"{error.code}: {error}")
        if outcome.state is not None:
            _begin(handler.after)
        return outcome

    def hand_back_all(self) -> None:
        """Cancel all calls and let none begin; the jobs go back to the queue."""
        self._active_jobs.let_none_begin()
        self._active_jobs.stop()

    async def _claim(self, job_id: UUID, published_at: datetime | None) -> Claim | None:
        """Take the job; None if it can't be taken now."""
        step = ClaimStep(job_id, published_at)
        return await self._group.claim(step, is_late=self._heartbeat.is_late())

    async def _do(self, job: JobContext, handler: Handler) -> JobSnapshot | None:
        """Do the job and store its end. Returns its snapshot if storing it has made one."""
        claim = job.claim
        try:
            job.show()
            if not claim.is_checked:
                job.checked(claim := await self._late_checks.check(claim))
            return await self._store(claim, await handler.do(job))
        except ClaimLost:
            pass  # it was cancelled, has expired, or another worker has it: the ledger says which
        except HandedBack:
            await self._hand_back(claim)
        except TransientLedgerError:
            raise  # the job is not at fault
        except DeadlinePassed:
            await self._expire(claim)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
            await self._retry_or_fail(claim, known(error))
        return None

    async def _store(self, claim: Claim, result: Result) -> JobSnapshot | None:
        """Store the result: the job has succeeded. Raises `ClaimLost`."""
        if isinstance(result, CallOutcome):
            with self._slots.storing():
                return await self._store_answer(claim, result)
        if result is not None:
            await self._ledger.write_async(lambda unit: unit.steps.succeed(claim, result))
        return None

    async def _store_answer(
        self, claim: Claim, call: CallOutcome[LLMResponse]
    ) -> JobSnapshot | None:
        """Store an answer and settle its attempt in one transaction, even if the job has ended.

        The answer is paid for, so a retry of the job finds it and pays no more.
        """
        async with self._calls.cost_on_record(call):
            result = result_of(call.answer)
            return await self._group.succeed(SucceedStep(claim, call.attempt_id, result, call.took))

    async def _hand_back(self, claim: Claim) -> None:
        """Put the job back in the queue; no change if a person has cancelled it."""
        await self._ledger.write_async(lambda unit: unit.steps.release(claim.job_id, claim.attempt))

    async def _expire(self, claim: Claim) -> None:
        with suppress(ClaimLost):
            await self._ledger.write_async(lambda unit: unit.steps.expire(claim))

    async def _retry_or_fail(self, claim: Claim, error: PromptStackError) -> None:
        """Decide what an error means for the job."""
        counts = error.counts_as_failure
        tries_left = claim.failures < claim.max_retries or not counts
        tries = claim.failures + 1 if counts else claim.attempt
        # When the limiter says when there is room, a longer wait would leave the room unused.
        delay = self._backoff.delay(tries if error.backs_off else 1, error.retry_after)

        def write(unit: UnitOfWork) -> None:
            most = error.most_tries
            in_vain = most is not None and unit.attempts.count(claim.job_id, error.code) >= most
            if error.transient and tries_left and not in_vain:
                unit.steps.retry_later(claim, delay, error.code, str(error), counts=counts)
            else:
                unit.steps.fail(claim, error.code, str(error), counts=counts)

        with suppress(ClaimLost):
            await self._ledger.write_async(write)

    async def _snapshot(self, job_id: UUID) -> JobSnapshot | None:
        """How the job stands in the ledger; None if it doesn't exist."""
        return await self._ledger.write_async(lambda unit: unit.steps.snapshot(job_id))

    def _outcome(self, job: JobSnapshot | None) -> JobOutcome:
        """Show how the job stands, and tell the task."""
        if job is None or job.state == JobState.RUNNING:
            return NOT_OURS  # it doesn't exist, or runs elsewhere
        progress = Progress.of(job)
        self._progress.publish(progress)
        if progress.state.is_final:
            self._ends.tell(job)
        if progress.state is JobState.QUEUED and not (job.attempt and job.error):
            return NOT_OURS  # handed back untried, or not due: it gets another message
        return JobOutcome(
            state=progress.state,
            summary={
                "job": str(job.id),
                "state": str(progress.state),
                "provider": job.provider,
                "model": job.model,
                "done": progress.current,
                "calls": job.calls,
                "tokens": job.tokens,
            },
            error=f"{job.error_code}: {job.error}" if job.error_code else "",
            retry_in=job.seconds_until_due,
            is_followed=job.is_followed,
        )
