"""What tests of jobs do and look at: enqueue, run here and without a worker, read the ledger."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text

from promptstack.config.names import Queue
from promptstack.repositories.jobs.records import Claim, JobFilter
from promptstack.repositories.models import Attempt, Job, JobState
from promptstack.repositories.operation_models import OperationAction
from promptstack.services.execution.executor import JobOutcome
from promptstack.services.execution.job_context import OnProgress
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.views import JobView
from promptstack.services.operations.views import OperationView
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import PATIENCE

NO_REDIS = "unix:///nowhere/at/all.sock"


PASSAGE = {"chunk_tokens": 16, "chunk_overlap_tokens": 0}
"""How long a passage is in these tests."""


@contextmanager
def another(stack: WorkerServices, **changes: object) -> Iterator[WorkerServices]:
    """Another process on the same ledger."""
    with WorkerServices.open(stack.settings.model_copy(update=changes)) as opened:
        yield opened


def generate(stack: WorkerServices, prompt: str = "Hello.", **how: Any) -> JobView:
    return stack.jobs.enqueue_generation(prompt, provider="fake", **how)


def embed(stack: WorkerServices, *passages: str, source: str = "a.txt", **how: Any) -> JobView:
    """A job for a document that is cut into exactly these passages."""
    text = "\n\n".join(map(padded, passages))
    return stack.jobs.enqueue_embedding(text, source=source, provider="fake", **how)


def padded(passage: str) -> str:
    """A passage so long that no two of them fit into one chunk."""
    return passage + " word" * 9


def first_words(texts: Sequence[str]) -> list[str]:
    return [text.split()[0] for text in texts]


def execute(
    stack: WorkerServices,
    job_id: UUID,
    on_progress: OnProgress = lambda _: None,
    published_at: datetime | None = None,
) -> JobOutcome:
    """Do what a worker does with a message of this job, and wait for it and for what follows."""
    outcome = stack.loop.run(stack.executor.run(job_id, on_progress, published_at))
    stack.job_threads._following.submit(lambda: None).result(PATIENCE)
    return outcome


def run(stack: WorkerServices, job: JobView) -> JobOutcome:
    """Do what a worker does with the job's message, in this thread."""
    return execute(stack, job.id)


def state(stack: WorkerServices, job: JobView) -> JobState:
    return stack.jobs.get(job.id).state


def row(stack: WorkerServices, job: JobView) -> Job:
    with stack.ledger.transaction() as unit:
        found = unit.jobs.get(job.id)
        assert found is not None
        return found


def columns(stack: WorkerServices, job: JobView) -> dict[str, Any]:
    """The whole row, to see whether anything changed."""
    with stack.ledger.transaction() as unit:
        query = text("SELECT to_jsonb(jobs) FROM jobs WHERE id = :id")
        found: dict[str, Any] = unit.session.scalar(query, {"id": job.id})
        return found


def attempts(stack: WorkerServices, job: JobView) -> list[Attempt]:
    with stack.ledger.transaction() as unit:
        return list(unit.attempts.get_many(job_id=job.id))


def sql(stack: WorkerServices, statement: str, **values: object) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement), values)


def make_due(stack: WorkerServices, job: JobView) -> None:
    sql(stack, "UPDATE jobs SET not_before = now() WHERE id = :id", id=job.id)


def claim(stack: WorkerServices, job: JobView, worker_id: UUID | None = None) -> Claim | None:
    with stack.ledger.transaction() as unit:
        return unit.steps.claim(job.id, worker_id or stack.worker_id)


def claimed(stack: WorkerServices, job: JobView, worker_id: UUID | None = None) -> Claim:
    found = claim(stack, job, worker_id)
    assert found is not None
    return found


def queued_messages(stack: WorkerServices) -> int:
    return sum(stack.publisher.waiting(queue) for queue in Queue)


STALE: dict[str, Callable[[Any, Claim], object]] = {
    "succeed": lambda steps, stale: steps.succeed(stale, {"text": "stale"}),
    "fail": lambda steps, stale: steps.fail(stale, "STALE", "stale"),
    "retry": lambda steps, stale: steps.retry_later(stale, 0.0, "STALE", "stale", counts=True),
    "progress": lambda steps, stale: steps.set_progress(stale, 7, 9),
    "check": lambda steps, stale: steps.check_claim(stale),
}


def two_users(stack: WorkerServices) -> tuple[UUID, UUID]:
    with stack.ledger.transaction() as unit:
        ada, eve = (unit.users.create(email=f"{name}@example.org").id for name in ("ada", "eve"))
        return ada, eve


def agrees(stack: WorkerServices, *jobs: JobView) -> None:
    """What Redis shows is what the ledger says, also after Redis was emptied."""
    for _ in range(2):
        shown = stack.progress.read([job.id for job in jobs])
        with stack.ledger.transaction() as unit:
            rows = [unit.jobs.get(job.id) for job in jobs]
        assert shown == {found.id: Progress.of(found) for found in rows if found}
        stack.redis.flushdb()


def as_accepted(job: JobView) -> JobView:
    """A queued job as its enqueue call returned it: what it waits for was not looked up."""
    return job.model_copy(update={"waits": None})


def retry_many(stack: WorkerServices, **wanted: Any) -> int:
    """Retry all that a filter matches, with the worker's part done here; how many were retried."""
    return operate(stack, OperationAction.RETRY, **wanted).done


def operate(stack: WorkerServices, action: OperationAction, **wanted: Any) -> OperationView:
    """Do an operation, with the worker's part done here; what it came to."""
    operation = stack.operations.start(action, JobFilter(**wanted))
    execute(stack, operation.id)
    return stack.operations.get(operation.id)
