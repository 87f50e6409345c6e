"""One worker has a job at a time, and nothing of an older attempt is stored."""

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import JobState
from promptstack.services.execution.executor import JobOutcome
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, Gate, employ
from tests.jobs import (
    STALE,
    another,
    attempts,
    claim,
    claimed,
    columns,
    execute,
    generate,
    row,
    run,
    sql,
)
from tests.processes import PATIENCE


def test_of_many_claims_at_once_one_wins(stack: WorkerServices, provider: FakeProvider) -> None:
    for _ in range(5):
        job = generate(stack)
        start = threading.Barrier(4, timeout=PATIENCE)

        def take(_: int, job: JobView = job, start: threading.Barrier = start) -> Claim | None:
            start.wait()
            return claim(stack, job, uuid4())

        with ThreadPoolExecutor(4) as pool:
            won = [found for found in pool.map(take, range(4)) if found is not None]
        assert [found.attempt for found in won] == [1]
        held = row(stack, job)
        assert (held.worker_id, held.attempt) == (won[0].worker_id, 1)


def test_a_stale_attempt_changes_nothing(
    stack: WorkerServices, provider: FakeProvider, subtests: pytest.Subtests
) -> None:
    job = generate(stack)
    stale = claimed(stack, job)
    with stack.ledger.transaction() as unit:
        assert unit.steps.release(job.id, stale.attempt)
    # Nobody holds it, another holds it, it has ended.
    for situation in ("queued", "running", "succeeded"):
        if situation == "running":
            fresh = claimed(stack, job)
            assert fresh.attempt == stale.attempt + 1
        if situation == "succeeded":
            with stack.ledger.transaction() as unit:
                unit.steps.succeed(fresh, {"text": "right"})
        before = columns(stack, job)
        assert before["state"] == situation
        for name, store in STALE.items():
            if (name, situation) == ("succeed", "queued"):
                continue  # its answer is welcome: nobody else has asked for one
            with subtests.test(f"{name} of a {situation} job"):
                with pytest.raises(ClaimLost), stack.ledger.transaction() as unit:
                    store(unit.steps, stale)
                assert columns(stack, job) == before
        with stack.ledger.transaction() as unit:
            assert not unit.steps.release(job.id, stale.attempt)
    assert stack.jobs.get(job.id).result == {"text": "right"}


def test_an_answer_that_comes_late_is_stored_while_nobody_else_asks(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Its worker was counted as dead, or a person cancelled and retried: asking again would pay
    twice."""

    def count_as_dead() -> None:
        sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
        with stack.ledger.transaction() as unit:
            assert [freed.id for freed in unit.maintenance.free_lost(60.0)] == [job.id]

    def cancel_and_retry() -> None:
        stack.jobs.cancel(again.id)
        stack.jobs.retry(again.id)

    job, again = generate(stack), generate(stack)
    stack.heartbeat.beat()
    for one, happens in ((job, count_as_dead), (again, cancel_and_retry)):
        provider.on_call = happens
        assert run(stack, one).state is JobState.SUCCEEDED
        held = row(stack, one)
        assert (held.state, held.attempt, held.worker_id) == (JobState.SUCCEEDED, 1, None)
        assert held.result is not None
        assert [attempt.state for attempt in attempts(stack, one)] == ["succeeded"]


def test_an_answer_that_comes_after_a_takeover_is_not_stored(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = generate(stack)
    fresh: list[Claim] = []

    def lose_the_job() -> None:
        with stack.ledger.transaction() as unit:
            assert unit.steps.release(job.id, 1)
        fresh.append(claimed(stack, job, uuid4()))

    provider.on_call = lose_the_job
    assert run(stack, job).state is None
    held = row(stack, job)
    assert (held.state, held.attempt, held.result) == (JobState.RUNNING, 2, None)
    assert held.worker_id == fresh[0].worker_id


def test_a_second_delivery_does_nothing(stack: WorkerServices, provider: FakeProvider) -> None:
    job = generate(stack)
    with another(stack) as other, ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        employ(other, provider)
        first = pool.submit(run, stack, job)
        gate.wait()
        before = columns(stack, job)
        assert run(stack, job).state is None  # in the process that runs it
        assert run(other, job).state is None  # in another one
        assert columns(stack, job) == before
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
        before = columns(stack, job)
        for late in (stack, other):
            outcome = run(late, job)
            assert (outcome.state, outcome.summary["calls"]) == (JobState.SUCCEEDED, 1)
        assert columns(stack, job) == before
    assert (provider.calls, len(attempts(stack, job))) == (1, 1)


def test_a_message_that_names_no_job_does_nothing(stack: WorkerServices) -> None:
    stack.heartbeat.beat()
    assert execute(stack, uuid4()) == JobOutcome(state=None)
