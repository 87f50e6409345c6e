"""What every job goes through in a worker: claim, run, store, and what becomes of an error.

No database session is open while a provider is asked: each step is a transaction of its own, and
everything that changes the job is fenced by the claim.
"""

import logging
import math
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from config.errors import PromptStackError
from repositories.attempts import Totals
from repositories.errors import (
    ClaimLost,
    LedgerConflict,
    LedgerReadOnly,
    LedgerRefused,
    TransientLedgerError,
)
from repositories.jobs import Claim
from repositories.models import AttemptState, Job, JobState
from repositories.session import Ledger, UnitOfWork
from services.backoff import Backoff
from services.heartbeat import Heartbeat
from services.llm.base import EmbeddingResponse, LLMResponse, LLMService
from services.llm.errors import ConnectionFailed, ProviderTimeout
from services.llm.pool import ProviderPool
from services.progress import Progress, ProgressService
from services.running import Hold, RunningJobs
from services.text import make_storable

logger = logging.getLogger(__name__)

LEDGER_RETRY_SECONDS = 0.5
SAY_AGAIN_SECONDS = 30.0
MAX_REFUSALS = 60
"""Times, half a second apart, that one change may be refused by a database that is up."""
STOP_PATIENCE_SECONDS = 8.0
"""How long a worker that stops still waits for PostgreSQL with what it has to store."""
MAX_TOKENS = 2**31 - 1
"""What the ledger's column holds, far above any real call."""

T = TypeVar("T")
Answer = TypeVar("Answer", LLMResponse, EmbeddingResponse)
Report = Callable[[Progress], None]
"""Told of every step that others may see."""


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job when a worker was done with its message."""

    state: JobState | None
    """None where the message was not for us to act on: unknown, taken, or not due."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Numbers and names only, never content: it goes to the result backend."""
    error: str = ""
    retry_in: float | None = None
    """Seconds until the next try, where the job went back to the queue."""


class Execution:
    """Runs jobs of any kind under their claim."""

    def __init__(
        self,
        ledger: Ledger,
        progress: ProgressService,
        providers: ProviderPool,
        running: RunningJobs,
        *,
        backoff: Backoff,
        heartbeat: Heartbeat,
        worker_id: UUID,
        call_timeout: float,
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._providers = providers
        self._running = running
        self._backoff = backoff
        self._heartbeat = heartbeat
        self._worker_id = worker_id
        self._call_timeout = call_timeout

    def run(
        self, job_id: UUID, work: "Work", report: Report, rung_at: datetime | None = None
    ) -> JobOutcome:
        """Claim the job and do its `work`, which stores the job's result.

        `rung_at` is when the job's message was sent, by the ledger's clock. What goes wrong with
        the job is in the outcome. Where the ledger is away until this worker stops, the job is
        freed by the reconciler of another, and that is in the outcome too.
        """
        with self._running.in_hand(job_id) as hold:
            try:
                return self._run(hold, work, report, rung_at)
            except TransientLedgerError as error:
                return JobOutcome(JobState.QUEUED, error=f"{error.code}: {error}")

    def _run(
        self, hold: Hold, work: "Work", report: Report, rung_at: datetime | None
    ) -> JobOutcome:
        job_id = hold.job_id
        claim = self.in_ledger(lambda unit: self._claim(unit, job_id, rung_at))
        if claim is None:
            return self._present(job_id)
        hold.attempt = claim.attempt
        job = ClaimedJob(self, claim, hold, report)
        try:
            job.show(JobState.RUNNING)
            work(job)
        except ClaimLost:
            pass  # cancelled, expired or taken over meanwhile: the ledger says which
        except CancelledError:
            # By a shutdown, where the claim still holds, or by a person.
            self.in_ledger(lambda unit: unit.jobs.release(job_id, claim.attempt))
        except TransientLedgerError:
            raise  # no fault of the job's
        except PromptStackError as error:
            self._settle(claim, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
            self._settle(claim, _bug(error))
        return self._present(job_id)

    def _claim(self, unit: UnitOfWork, job_id: UUID, rung_at: datetime | None) -> Claim | None:
        if self._heartbeat.is_late():
            # Whoever can claim is alive. Without this, a worker whose heartbeats are late would
            # pay for jobs that are freed at once.
            unit.workers.refresh(self._worker_id)
        return unit.jobs.claim(job_id, self._worker_id, rung_at)

    def call(
        self,
        job: "ClaimedJob",
        ask: Callable[[LLMService], Coroutine[Any, Any, Answer]],
        keep: Callable[[UnitOfWork, Answer], None],
        *,
        items: int,
    ) -> Answer:
        """Make one provider call with its attempt row around it, and `keep` the answer.

        The answer is paid for, so it is kept whether or not the claim still holds: `keep` must
        not raise `ClaimLost`. Raises `ProviderError`, `ClaimLost`.
        """
        claim, call = job.claim, job.next_call()
        service = self._providers.get(claim.provider)

        def begin(unit: UnitOfWork) -> int:
            unit.jobs.check_claim(claim)
            return unit.attempts.start(claim, call=call, items=items)

        attempt_id = self.in_ledger(begin)
        try:
            answer = self._wait_for(job, ask(service))
        except CancelledError:
            self.in_ledger(lambda unit: unit.attempts.settle(attempt_id, AttemptState.CANCELLED))
            raise
        except PromptStackError as error:
            self._settle_attempt(attempt_id, error)
            raise
        except Exception as error:
            self._settle_attempt(attempt_id, _bug(error))
            raise

        def store(unit: UnitOfWork) -> None:
            # The job's row before the attempt's, as everywhere: no two can wait for each other.
            keep(unit, answer)
            unit.attempts.settle(
                attempt_id,
                AttemptState.SUCCEEDED,
                input_tokens=_credible(answer.input_tokens),
                output_tokens=_credible(getattr(answer, "output_tokens", None)),
                latency_seconds=answer.latency_seconds,
                provider_request_id=make_storable(answer.provider_request_id or "") or None,
            )

        try:
            self.in_ledger(store)
        except TransientLedgerError:
            raise
        except Exception as error:
            # What it cost is on record even where the answer can't be.
            known = error if isinstance(error, PromptStackError) else _bug(error)
            self._settle_attempt(attempt_id, known)
            raise
        return answer

    def _wait_for(self, job: "ClaimedJob", call: Coroutine[Any, Any, Answer]) -> Answer:
        """Wait for a provider's answer. Raises `ProviderError`, `CancelledError` if we cancel."""
        provider, timeout = job.claim.provider, self._call_timeout
        try:
            return self._running.wait_for(job.hold, call, timeout)
        except TimeoutError as error:
            raise ProviderTimeout(f"{provider} did not answer within {timeout:g} s.") from error
        except CancelledError as error:
            if job.hold.is_cancelled:
                raise
            # From within the provider's own code: a failure of the call, which must count.
            raise ConnectionFailed(f"{provider}'s client cancelled its own call.") from error

    def in_ledger(self, write: Callable[[UnitOfWork], T]) -> T:
        """Run one transaction, and wait while PostgreSQL is away; what `write` returns.

        Nothing that is known here may get lost, least of all an answer that was paid for, and
        no other job could run meanwhile. `write` may run twice, where a connection broke in the
        middle of a commit. Raises `TransientLedgerError` when the worker stops, and `LedgerRefused`
        when the database is up and refuses just this.
        """
        refusals = 0
        said_at = -math.inf
        while True:
            try:
                with self._ledger.transaction() as unit:
                    return write(unit)
            except TransientLedgerError as error:
                if self._running.seconds_since_stop() > STOP_PATIENCE_SECONDS:
                    raise
                refusals += self._is_refused(error)
                if refusals > MAX_REFUSALS:
                    raise LedgerRefused(
                        f"The database is up but refused the same change {refusals} times: {error}",
                        detail=error.detail,
                    ) from error
                if time.monotonic() - said_at > SAY_AGAIN_SECONDS:
                    logger.warning("a job waits for the ledger: %s", error)
                    said_at = time.monotonic()
                time.sleep(LEDGER_RETRY_SECONDS)

    def _is_refused(self, error: TransientLedgerError) -> bool:
        """Whether the error is about the change itself, and not about the whole database."""
        if isinstance(error, LedgerConflict):
            return True
        if isinstance(error, LedgerReadOnly):
            return False
        try:
            self._ledger.ping()
        except TransientLedgerError:
            return False
        return True

    def pause(self, hold: Hold, seconds: float) -> None:
        """Wait; see `RunningJobs.pause`."""
        self._running.pause(hold, seconds)

    def publish(self, progress: Progress) -> None:
        """Show progress to everyone who watches."""
        self._progress.publish(progress)

    def _settle(self, claim: Claim, error: PromptStackError) -> None:
        """Decide what an error means for the job: this is the one place."""
        counts = error.counts_as_failure
        tries_left = claim.failures < claim.max_retries or not counts
        tries = claim.failures + 1 if counts else claim.attempt
        delay = self._backoff.delay(tries, error.retry_after)

        def write(unit: UnitOfWork) -> None:
            if error.transient and tries_left:
                unit.jobs.retry_later(claim, delay, error.code, str(error), counts=counts)
            else:
                unit.jobs.fail(claim, error.code, str(error))

        with suppress(ClaimLost):
            self.in_ledger(write)

    def _settle_attempt(self, attempt_id: int, error: PromptStackError) -> None:
        self.in_ledger(
            lambda unit: unit.attempts.settle(
                attempt_id,
                AttemptState.FAILED,
                error_code=error.code,
                error=str(error),
                detail=error.detail,
                provider_request_id=getattr(error, "request_id", None),
            )
        )

    def _present(self, job_id: UUID) -> JobOutcome:
        """Read from the ledger how the job stands, show it, and say it to the queue."""

        def read(unit: UnitOfWork) -> tuple[Job, float | None, Totals] | None:
            job = next(iter(unit.jobs.get_all([job_id])), None)
            if job is None:
                return None
            waits = unit.jobs.seconds_until_due(job_id) if job.not_before else None
            return job, waits, unit.attempts.totals(job_id)

        found = self.in_ledger(read)
        if found is None:
            return JobOutcome(state=None)
        job, waits, totals = found
        progress = Progress.of(job)
        if progress.state is JobState.RUNNING:
            return JobOutcome(state=None)  # it runs elsewhere
        self.publish(progress)
        if progress.state is JobState.QUEUED and not (job.attempt and job.error):
            return JobOutcome(state=None)  # handed back untried, or not due: it is rung again
        return JobOutcome(
            state=progress.state,
            summary={
                "job": str(job_id),
                "state": str(progress.state),
                "provider": job.provider,
                "model": job.model,
                "done": progress.current,
                "calls": totals.calls,
                "tokens": totals.tokens,
            },
            error=f"{job.error_code}: {job.error}" if job.error_code else "",
            retry_in=waits,
        )


class ClaimedJob:
    """A job in the hands of this worker."""

    def __init__(self, execution: Execution, claim: Claim, hold: Hold, report: Report) -> None:
        self.claim = claim
        self.hold = hold
        self._execution = execution
        self._report = report
        self._calls = 0
        self._shown = Progress(claim.job_id, JobState.RUNNING, 0, 1, claim.failures)

    def call(
        self,
        ask: Callable[[LLMService], Coroutine[Any, Any, Answer]],
        keep: Callable[[UnitOfWork, Answer], None] = lambda unit, answer: None,
        *,
        items: int = 1,
    ) -> Answer:
        """Make one provider call; see `Execution.call`."""
        return self._execution.call(self, ask, keep, items=items)

    def in_ledger(self, write: Callable[[UnitOfWork], T]) -> T:
        """Run one transaction; see `Execution.in_ledger`."""
        return self._execution.in_ledger(write)

    def pause(self, seconds: float) -> None:
        """Wait for something that others do. Raises `CancelledError` when the worker stops."""
        self._execution.pause(self.hold, seconds)

    def next_call(self) -> int:
        """Count the calls of this claim, from 0."""
        self._calls += 1
        return self._calls - 1

    def show(self, state: JobState, current: int = 0, total: int = 1) -> None:
        """Show where the job stands."""
        self._shown = replace(self._shown, state=state, current=current, total=total)
        self._execution.publish(self._shown)
        self._report(self._shown)


def _credible(tokens: int | None) -> int | None:
    """A count of tokens, or None where a provider tells nonsense: the answer is kept anyway."""
    return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None


def _bug(error: Exception) -> PromptStackError:
    """Turn an error that nobody expected into one that may be shown.

    Its message may quote a prompt, so only its type and the way to it are logged.
    """
    logger.error(
        "unexpected %s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__))
    )
    return PromptStackError(
        f"The worker met an unexpected {type(error).__name__}; its log has the traceback."
    )


Work = Callable[[ClaimedJob], None]
"""Does a job and stores its result."""
