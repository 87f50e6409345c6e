"""Why a queued job does not run yet: told from its row, and from which workers are alive."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from promptstack.config.names import RATE_LIMIT_WAIT, Queue
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import BudgetHeld
from promptstack.services.jobs.views import JobView, Wait, WaitReason
from promptstack.services.limiter.errors import CircuitOpen
from promptstack.services.llm.errors import RateLimited
from promptstack.services.llm.factory import LLMServiceFactory

REASONS = {
    RATE_LIMIT_WAIT: WaitReason.LIMIT,
    RateLimited.code: WaitReason.LIMIT,
    BudgetHeld.code: WaitReason.LIMIT,
    CircuitOpen.code: WaitReason.CIRCUIT,
}
"""What a job waits for that was put back with this error. After any other, it tries again later."""
NO_WORKER = "No worker is alive. Start one: `promptstack worker`."
NO_KEY = "No worker that is alive has the API key of {provider}, which is read where workers run."
TURN = "It is a bulk job, whose users take turns: it is sent to workers when its user's turn comes."
UNSENT = "Its message has not left yet: it was accepted just now, or the broker is away."
QUEUE = "It was sent to the workers, who do what came before."


@dataclass(frozen=True)
class Workers:
    """Who could run jobs at a moment."""

    now: datetime
    """By the database's clock."""
    providers: Sequence[Sequence[str] | None]
    """Those across a network that each one alive can ask; None where it doesn't say."""

    def can_ask(self, provider: str) -> bool:
        """Whether one of them may have the provider's key."""
        return any(known is None or provider in known for known in self.providers)


class JobWaits:
    """Makes views of jobs, each with what it waits for."""

    def __init__(self, factory: LLMServiceFactory, worker_lost_seconds: float) -> None:
        self._factory = factory
        self._worker_lost_seconds = worker_lost_seconds

    def view(self, work: UnitOfWork, job: Job) -> JobView:
        """A job."""
        return self.views(work, [job])[0]

    def views(self, work: UnitOfWork, jobs: Sequence[Job]) -> list[JobView]:
        """Jobs, however many, by one question more: who is alive. None where none is queued."""
        shown = list(map(JobView.model_validate, jobs))
        if not any(job.state is JobState.QUEUED for job in shown):
            return shown
        workers = Workers(*work.workers.look(self._worker_lost_seconds))
        return [
            view.model_copy(update={"waits": self.why(job, workers)})
            for view, job in zip(shown, jobs, strict=True)
        ]

    def why(self, job: Job, workers: Workers) -> Wait | None:
        """What a job waits for; None where it is not queued."""
        if job.state != JobState.QUEUED:
            return None
        if not workers.providers:
            return Wait(reason=WaitReason.NO_WORKER, detail=NO_WORKER)
        if not self._factory.is_set_up(job.provider) and not workers.can_ask(job.provider):
            detail = NO_KEY.format(provider=job.provider)
            return Wait(reason=WaitReason.NO_WORKER, detail=detail)
        if job.not_before is not None and job.not_before > workers.now:
            reason = REASONS.get(job.error_code or "", WaitReason.BACKOFF)
            detail = job.error or "It is tried again later."
            return Wait(reason=reason, detail=detail, until=job.not_before)
        if is_held(job):
            return Wait(reason=WaitReason.TURN, detail=TURN)
        return Wait(reason=WaitReason.QUEUE, detail=QUEUE if job.published_at else UNSENT)


def is_held(job: Job) -> bool:
    """Whether a queued job waits for its user's turn: `IS_HELD` of the ledger's models."""
    is_alone = job.run_id is None and job.published_at is None and job.not_before is None
    return is_alone and Queue(job.queue).is_bulk
