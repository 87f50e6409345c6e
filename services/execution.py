"""What every job goes through in a worker: claim, run, store, and what becomes of an error.

No database session is open while a provider is asked: each step is a transaction of its own, and
everything that changes the job is fenced by the claim.
"""

import logging
import time
import traceback
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import UUID

from config.errors import PromptStackError
from repositories.errors import ClaimLost, LedgerConflict, LedgerUnavailable
from repositories.jobs import Claim
from repositories.models import AttemptState, JobState
from repositories.session import Ledger, UnitOfWork
from services.backoff import Backoff
from services.llm.base import EmbeddingResponse, LLMResponse, LLMService
from services.llm.errors import ProviderError, ProviderTimeout
from services.llm.pool import ProviderPool
from services.progress import Progress, ProgressService
from services.running import RunningJobs
from services.text import make_storable

logger = logging.getLogger(__name__)

STORE_PATIENCE_SECONDS = 120.0
"""How long an answer that was paid for waits in memory for PostgreSQL to come back."""
STORE_RETRY_SECONDS = 0.5

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
        backoff: Backoff,
        *,
        worker_id: UUID,
        call_timeout: float,
    ) -> None:
        self._ledger = ledger
        self._progress = progress
        self._providers = providers
        self._running = running
        self._backoff = backoff
        self._worker_id = worker_id
        self._call_timeout = call_timeout

    def run(self, job_id: UUID, work: "Work", report: Report) -> JobOutcome:
        """Claim the job, do its `work`, and store what it returns as the job's result.

        Never raises: what is wrong is in the outcome. When PostgreSQL is away, the job is handed
        back by the heartbeat or rung again by the reconciler once it is there.
        """
        with self._running.in_hand(job_id) as is_new:
            if not is_new:
                return JobOutcome(state=None)
            try:
                return self._run(job_id, work, report)
            except LedgerUnavailable as error:
                return JobOutcome(JobState.QUEUED, error=f"{error.code}: {error}")

    def _run(self, job_id: UUID, work: "Work", report: Report) -> JobOutcome:
        with self._ledger.transaction() as unit:
            claim = unit.jobs.claim(job_id, self._worker_id)
        if claim is None:
            return self._present(job_id)
        job = ClaimedJob(self, claim, report)
        try:
            job.show(JobState.RUNNING)
            result = work(job)
            if result is not None:
                self._store(lambda unit: unit.jobs.succeed(claim, result))
        except ClaimLost:
            pass  # cancelled, expired or taken over meanwhile: the ledger says which
        except CancelledError:
            self._hand_back(claim)
        except PromptStackError as error:
            self._settle(claim, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
            self._settle(claim, _bug(error))
        return self._present(job_id)

    def call(
        self,
        job: "ClaimedJob",
        ask: Callable[[LLMService], Coroutine[Any, Any, Answer]],
        keep: Callable[[UnitOfWork, Answer], None],
        *,
        items: int,
    ) -> Answer:
        """Make one provider call with its attempt row around it, and `keep` the answer.

        The answer is paid for, so it is kept whether or not the claim still holds; `keep` may
        only store what doesn't depend on the claim. Raises `ProviderError`, `ClaimLost`.
        """
        claim = job.claim
        service = self._providers.get(claim.provider)
        with self._ledger.transaction() as unit:
            unit.jobs.check_claim(claim)
            attempt_id = unit.attempts.start(claim, call=job.next_call(), items=items)
        try:
            answer = self._running.wait_for(claim.job_id, ask(service), self._call_timeout)
        except TimeoutError as error:
            timeout = ProviderTimeout(
                f"{claim.provider} did not answer within {self._call_timeout:g} s."
            )
            self._settle_attempt(attempt_id, timeout)
            raise timeout from error
        except CancelledError:
            with self._ledger.transaction() as unit:
                unit.attempts.settle(attempt_id, AttemptState.CANCELLED)
            raise
        except PromptStackError as error:
            self._settle_attempt(attempt_id, error)
            raise
        except Exception as error:
            self._settle_attempt(attempt_id, _bug(error))
            raise

        def store(unit: UnitOfWork) -> None:
            unit.attempts.settle(
                attempt_id,
                AttemptState.SUCCEEDED,
                input_tokens=answer.input_tokens,
                output_tokens=getattr(answer, "output_tokens", None),
                latency_seconds=answer.latency_seconds,
                provider_request_id=make_storable(answer.provider_request_id or "") or None,
            )
            keep(unit, answer)

        self._store(store)
        return answer

    def ledger(self) -> Ledger:
        """The ledger, for the steps of a kind of job."""
        return self._ledger

    def publish(self, progress: Progress) -> None:
        """Show progress to everyone who watches."""
        self._progress.publish(progress)

    def _store(self, write: Callable[[UnitOfWork], None]) -> None:
        """Store what was paid for, also when PostgreSQL is away for a while.

        `write` may run twice, where a connection broke in the middle of a commit.
        """
        deadline = time.monotonic() + STORE_PATIENCE_SECONDS
        while True:
            try:
                with self._ledger.transaction() as unit:
                    write(unit)
                return
            except (LedgerConflict, LedgerUnavailable):
                if time.monotonic() > deadline:
                    raise
                logger.warning("a result waits for the database")
                time.sleep(STORE_RETRY_SECONDS)

    def _settle(self, claim: Claim, error: PromptStackError) -> None:
        """Decide what an error means for the job: this is the one place."""
        counts = not isinstance(error, ProviderError) or error.counts_as_failure
        tries_left = claim.failures < claim.max_retries or not counts
        with suppress(ClaimLost), self._ledger.transaction() as unit:
            if error.transient and tries_left:
                tries = claim.failures + 1 if counts else claim.attempt
                delay = self._backoff.delay(tries, error.retry_after)
                unit.jobs.retry_later(claim, delay, error.code, str(error), counts=counts)
            else:
                unit.jobs.fail(claim, error.code, str(error))

    def _hand_back(self, claim: Claim) -> None:
        """A call was cancelled: by a shutdown, when the claim still holds, or by a person."""
        with self._ledger.transaction() as unit:
            unit.jobs.release(claim.job_id, claim.attempt)

    def _settle_attempt(self, attempt_id: int, error: PromptStackError) -> None:
        with self._ledger.transaction() as unit:
            unit.attempts.settle(
                attempt_id,
                AttemptState.FAILED,
                error_code=error.code,
                error=str(error),
                detail=error.detail,
                provider_request_id=getattr(error, "request_id", None),
            )

    def _present(self, job_id: UUID) -> JobOutcome:
        """Read from the ledger how the job stands, show it, and say it to the queue."""
        with self._ledger.transaction() as unit:
            job = unit.jobs.get(job_id)
            if job is None:
                return JobOutcome(state=None)
            progress = Progress.of(job)
            waits = unit.jobs.seconds_until_due(job_id)
            totals = unit.attempts.totals(job_id)
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

    def __init__(self, execution: Execution, claim: Claim, report: Report) -> None:
        self.claim = claim
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

    def next_call(self) -> int:
        """Count the calls of this claim, from 0."""
        self._calls += 1
        return self._calls - 1

    def advance(self, current: int, total: int) -> None:
        """Record that `current` of `total` items are done, and show it. Raises `ClaimLost`."""
        with self._execution.ledger().transaction() as unit:
            unit.jobs.set_progress(self.claim, current, total)
        self.show(JobState.RUNNING, current, total)

    def show(self, state: JobState, current: int = 0, total: int = 1) -> None:
        """Show where the job stands."""
        self._shown = replace(self._shown, state=state, current=current, total=total)
        self._execution.publish(self._shown)
        self._report(self._shown)


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


Work = Callable[[ClaimedJob], dict[str, Any] | None]
"""Does a job and returns its result, or None where it has stored the result itself."""
