"""A broker that is emptied costs seconds, and no job."""

from collections import Counter
from collections.abc import Callable
from uuid import UUID

from sqlalchemy import text

from promptstack.repositories.models import JobState
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until


def test_a_flush_in_mid_run_loses_no_job(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker(WORKER_CONCURRENCY="2")
    delays = [1.5, *(0.1 for _ in range(9))]
    jobs = [
        stack.jobs.enqueue_generation(f"{number}", options={"delay_seconds": delay})
        for number, delay in enumerate(delays)
    ]
    jobs += [stack.jobs.enqueue_embedding(f"{n}", source=f"{n}") for n in range(5)]

    def tally() -> Counter[str]:
        with stack.ledger.transaction() as unit:
            return Counter(unit.session.scalars(text("SELECT state FROM jobs")).all())

    middle = {JobState.QUEUED, JobState.RUNNING, JobState.SUCCEEDED}
    wait_until(lambda: set(tally()) == middle, "the middle of the run")
    stack.redis.flushdb()
    wait_until(lambda: tally()[JobState.SUCCEEDED] == len(jobs), "the end of every job")
    # Nothing was asked for twice.
    assert {stack.jobs.get(job.id).attempt for job in jobs} == {1}


def test_a_flushed_broker_is_told_from_a_slow_one(stack: PromptStack) -> None:
    jobs = {stack.jobs.enqueue_generation(f"job {n}").id for n in range(3)}

    def unpublished() -> set[UUID]:
        epoch = stack.publisher.epoch()
        with stack.ledger.transaction() as unit:
            found = unit.outbox.take_unpublished(epoch, idle_queues=[], patience=0.0, limit=100)
            return {job.id for job in found}

    assert unpublished() == set()  # a backlog that waits is left alone
    stack.redis.flushdb()
    assert unpublished() == jobs
    assert unpublished() == set()
