"""What every job goes through in a worker: claim, run, store, and what becomes of an error.

No database session is open while a provider is asked: each step is a transaction of its own, and
everything that changes the job is fenced by the claim.
"""

import time
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import ClaimLost, TransientLedgerError
from promptstack.repositories.jobs.records import Claim, ClaimStep, JobSnapshot
from promptstack.repositories.models import JobState
from promptstack.repositories.session import UnitOfWork
from promptstack.services.errors import DeadlinePassed
from promptstack.services.execution.active_jobs import ActiveJob, ActiveJobs
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.group_commit import GroupCommit, NotBatched
from promptstack.services.execution.heartbeat import Heartbeat
from promptstack.services.execution.job_context import JobContext, Report, Work
from promptstack.services.execution.provider_calls import ProviderCalls, bug
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress, ProgressService


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


class Executor:
    """Runs jobs of any kind under their claim."""

    def __init__(
        self,
        ledger: RetryingLedger,
        calls: ProviderCalls,
        progress: ProgressService,
        running: ActiveJobs,
        together: GroupCommit,
        *,
        backoff: Backoff,
        heartbeat: Heartbeat,
        worker_id: UUID,
    ) -> None:
        self._ledger = ledger
        self._calls = calls
        self._progress = progress
        self._running = running
        self._together = together
        self._backoff = backoff
        self._heartbeat = heartbeat
        self._worker_id = worker_id

    def run(
        self, job_id: UUID, work: Work, report: Report, published_at: datetime | None = None
    ) -> JobOutcome:
        """Claim the job and do its `work`, which stores the job's result.

        `published_at` is when the job's message was sent, by the ledger's clock. What goes wrong
        with the job is in the outcome. Where the ledger is away until this worker stops, the job is
        freed by the reconciler of another, and that is in the outcome too.
        """
        with self._running.in_hand(job_id) as hold:
            try:
                return self._run(hold, work, report, published_at)
            except TransientLedgerError as error:
                return JobOutcome(JobState.QUEUED, error=f"{error.code}: {error}")

    def _run(
        self, hold: ActiveJob, work: Work, report: Report, published_at: datetime | None
    ) -> JobOutcome:
        job_id = hold.job_id
        claim = self._claim(job_id, published_at)
        if claim is None:
            return self._present(job_id)
        hold.attempt = claim.attempt
        hold.deadline = time.monotonic() + claim.seconds_left
        job = JobContext(
            claim,
            hold,
            ledger=self._ledger,
            calls=self._calls,
            running=self._running,
            progress=self._progress,
            report=report,
        )
        try:
            job.show(JobState.RUNNING)
            work(job)
            if job.standing is not None:
                return self._say(job.standing)
        except ClaimLost:
            pass  # cancelled, expired or taken over meanwhile: the ledger says which
        except CancelledError:
            # By a shutdown, where the claim still holds, or by a person.
            self._ledger.write(lambda unit: unit.steps.release(job_id, claim.attempt))
        except TransientLedgerError:
            raise  # no fault of the job's
        except DeadlinePassed:
            self._expire(claim)
        except PromptStackError as error:
            self._settle(claim, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the job must end
            self._settle(claim, bug(error))
        return self._present(job_id)

    def _claim(self, job_id: UUID, published_at: datetime | None) -> Claim | None:
        if not self._heartbeat.is_late():
            with suppress(NotBatched):
                return self._together.claim(ClaimStep(job_id, published_at))
        return self._ledger.write(lambda unit: self._claim_alone(unit, job_id, published_at))

    def _claim_alone(
        self, unit: UnitOfWork, job_id: UUID, published_at: datetime | None
    ) -> Claim | None:
        if self._heartbeat.is_late():
            # Whoever can claim is alive. Without this, a worker whose heartbeats are late would
            # pay for jobs that are freed at once.
            unit.workers.refresh(self._worker_id)
        return unit.steps.claim(job_id, self._worker_id, published_at)

    def _settle(self, claim: Claim, error: PromptStackError) -> None:
        """Decide what an error means for the job: this is the one place."""
        counts = error.counts_as_failure
        tries_left = claim.failures < claim.max_retries or not counts
        tries = claim.failures + 1 if counts else claim.attempt
        # Where the limiter says when there is room, a longer wait would leave it unused.
        delay = self._backoff.delay(tries if error.backs_off else 1, error.retry_after)

        def write(unit: UnitOfWork) -> None:
            most = error.most_tries
            in_vain = most is not None and unit.attempts.count(claim.job_id, error.code) >= most
            if error.transient and tries_left and not in_vain:
                unit.steps.retry_later(claim, delay, error.code, str(error), counts=counts)
            else:
                unit.steps.fail(claim, error.code, str(error), counts=counts)

        with suppress(ClaimLost):
            self._ledger.write(write)

    def _expire(self, claim: Claim) -> None:
        with suppress(ClaimLost):
            self._ledger.write(lambda unit: unit.steps.expire(claim))

    def _present(self, job_id: UUID) -> JobOutcome:
        """Read from the ledger how the job stands, show it, and say it to the queue."""
        job = self._ledger.write(lambda unit: unit.steps.snapshot(job_id))
        return JobOutcome(state=None) if job is None else self._say(job)

    def _say(self, job: JobSnapshot) -> JobOutcome:
        progress = Progress.of(job)
        if progress.state is JobState.RUNNING:
            return JobOutcome(state=None)  # it runs elsewhere
        self._progress.publish(progress)
        if progress.state is JobState.QUEUED and not (job.attempt and job.error):
            return JobOutcome(state=None)  # handed back untried, or not due: it is published again
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
        )
