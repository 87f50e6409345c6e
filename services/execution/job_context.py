"""A job in the hands of this worker: what its work may do."""

from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

from promptstack.repositories.jobs.records import Claim, JobSnapshot
from promptstack.repositories.models import JobState
from promptstack.repositories.session import UnitOfWork
from promptstack.services.execution.active_jobs import ActiveJob, ActiveJobs
from promptstack.services.execution.provider_calls import HeldJob, ProviderCall, ProviderCalls
from promptstack.services.execution.retrying_ledger import RetryingLedger
from promptstack.services.jobs.progress import Progress, ProgressService
from promptstack.services.llm.base import EmbeddingResponse, LLMResponse

T = TypeVar("T")
Answer = TypeVar("Answer", LLMResponse, EmbeddingResponse)
Report = Callable[[Progress], None]
"""Told of every step that others may see."""


class JobContext:
    """A job under its claim."""

    def __init__(
        self,
        claim: Claim,
        hold: ActiveJob,
        *,
        ledger: RetryingLedger,
        calls: ProviderCalls,
        running: ActiveJobs,
        progress: ProgressService,
        report: Report,
    ) -> None:
        self.claim = claim
        self._hold = hold
        self._ledger = ledger
        self._calls = calls
        self._running = running
        self._progress = progress
        self._report = report
        self.standing: JobSnapshot | None = None
        """How the job stands since its work is done, where that is known."""
        self._shown = Progress(claim.job_id, JobState.RUNNING, 0, 1, claim.failures)

    def call(self, *calls: ProviderCall, keep: Callable[[UnitOfWork, Answer], None]) -> Answer:
        """Make the first of these calls that is answered; see `ProviderCalls.make`."""
        return self._calls.make(HeldJob(self.claim, self._hold), calls, keep)

    def in_ledger(self, write: Callable[[UnitOfWork], T]) -> T:
        """Run one transaction; see `RetryingLedger.write`."""
        return self._ledger.write(write)

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin calls of the work's own; they are cancelled where the job is taken from us."""
        return self._running.begin(self._hold, coroutine)

    @property
    def is_cancelled(self) -> bool:
        """Whether the job was taken from us, or all was stopped."""
        return self._hold.is_cancelled

    @property
    def is_closing(self) -> bool:
        """Whether no call may begin any more, as the worker is about to stop."""
        return self._running.is_closing

    def hand_back(self) -> NoReturn:
        """Stop here, for another worker to go on. Raises `CancelledError`."""
        self._hold.is_cancelled = True
        raise CancelledError

    def seconds_left(self) -> float:
        """Time until the job expires."""
        return self._hold.seconds_left()

    def pause(self, seconds: float) -> None:
        """Wait for something that others do. Raises `CancelledError` when the worker stops."""
        self._running.pause(self._hold, seconds)

    def show(self, state: JobState, current: int = 0, total: int = 1) -> None:
        """Show where the job stands."""
        self._shown = replace(self._shown, state=state, current=current, total=total)
        self._progress.publish(self._shown)
        self._report(self._shown)


Work = Callable[[JobContext], None]
"""Does a job and stores its result."""
