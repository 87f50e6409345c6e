"""A worker's slots bound the calls of its jobs, whatever becomes of the jobs."""

import pytest

from promptstack.repositories.models import JobState
from promptstack.services.execution.job_slots import JobSlots
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import HeldProvider, employ
from tests.processes import wait_until

SLOTS = 2


@pytest.fixture
def held(stack: WorkerServices) -> HeldProvider:
    stack.job_slots = JobSlots(SLOTS)
    provider = HeldProvider()
    employ(stack, provider)
    return provider


def begin(stack: WorkerServices, count: int) -> list[JobView]:
    jobs = [
        stack.jobs.enqueue_generation(f"{number}", provider="held", max_retries=0)
        for number in range(count)
    ]
    for job in jobs:
        stack.loop.submit(stack.executor.run(job.id, lambda _: None))
    return jobs


def are(stack: WorkerServices, state: JobState, jobs: list[JobView]) -> bool:
    return all(stack.jobs.get(job.id).state is state for job in jobs)


def test_no_more_calls_than_slots_and_each_gets_its_turn(
    stack: WorkerServices, held: HeldProvider
) -> None:
    jobs = begin(stack, 6)
    for number in range(6):
        wait_until(lambda: len(held.held) > number, "the next call")  # noqa: B023 - waited for here
        assert len(held.held) <= number + SLOTS
        stack.loop.run(held.let_go(number))
    wait_until(lambda: are(stack, JobState.SUCCEEDED, jobs), "all jobs to end")


def test_jobs_that_are_taken_away_leave_their_slots(
    stack: WorkerServices, held: HeldProvider
) -> None:
    jobs = begin(stack, 6)
    wait_until(lambda: are(stack, JobState.RUNNING, jobs), "all claims")
    wait_until(lambda: len(held.held) == SLOTS, "the slots to be taken")
    # Four with a call or waiting for a slot; which of them have one does not matter.
    for job in jobs[:4]:
        stack.jobs.cancel(job.id)
    stack.heartbeat.beat()
    answered = 0

    def have_ended() -> bool:
        nonlocal answered
        while answered < len(held.held):
            stack.loop.run(held.let_go(answered))
            answered += 1
        return are(stack, JobState.SUCCEEDED, jobs[4:])

    wait_until(have_ended, "the others to get a slot")
    more = begin(stack, SLOTS)
    wait_until(lambda: len(held.held) == answered + SLOTS, "all slots to be there still")
    for number in range(answered, answered + SLOTS):
        stack.loop.run(held.let_go(number))
    wait_until(lambda: are(stack, JobState.SUCCEEDED, more), "their end")
