"""A job that has ended stays as it is, unless a person asks for a retry."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim, JobFilter
from promptstack.repositories.models import JobState
from promptstack.services.errors import WrongState
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import (
    InvalidProviderRequest,
    RateLimited,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, Gate, raises
from tests.jobs import (
    STALE,
    agrees,
    attempts,
    claim,
    columns,
    embed,
    execute,
    first_words,
    generate,
    queued_messages,
    run,
    sql,
    state,
)
from tests.reconcilers import Clock, reconciler_of


def cancel(stack: WorkerServices, job: JobView) -> None:
    stack.jobs.cancel(job.id)


def end(stack: WorkerServices, provider: FakeProvider, ending: JobState) -> JobView:
    job = generate(stack)
    if ending is JobState.SUCCEEDED:
        run(stack, job)
    elif ending is JobState.FAILED:
        provider.on_call = raises(InvalidProviderRequest("no"))
        run(stack, job)
    elif ending is JobState.CANCELLED:
        stack.jobs.cancel(job.id)
    else:
        sql(stack, "UPDATE jobs SET expires_at = now() WHERE id = :id", id=job.id)
        stack.reconciler.run_once()
    assert state(stack, job) is ending
    return job


def test_a_job_that_has_ended_stays_as_it_is(
    stack: WorkerServices, provider: FakeProvider, subtests: pytest.Subtests
) -> None:
    reconciler = reconciler_of(stack, Clock())
    for ending in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
        job = end(stack, provider, ending)
        before, calls = columns(stack, job), provider.calls
        assert before["finished_at"] is not None
        current = Claim(
            job.id,
            before["attempt"],
            stack.worker_id,
            None,
            "fake",
            "fake-1",
            {},
            0,
            3,
            False,
            60.0,
            job.kind,
        )
        with subtests.test(str(ending)):
            with pytest.raises(WrongState, match=str(ending)):
                stack.jobs.cancel(job.id)
            for store in STALE.values():
                with pytest.raises(ClaimLost), stack.ledger.transaction() as unit:
                    store(unit.steps, current)
            with stack.ledger.transaction() as unit:
                assert not unit.steps.release(job.id, current.attempt)
                unit.outbox.mark_published([(job.id, current.attempt)], "another epoch")
            sql(stack, "UPDATE workers SET heartbeat_at = now() - interval '1 h'")
            stack.redis.flushdb()
            reconciler.run_once()
            stack.heartbeat.beat()
            assert claim(stack, job) is None
            assert run(stack, job).state is ending
            assert columns(stack, job) == before
            assert provider.calls == calls
            assert queued_messages(stack) == 0


def test_a_person_can_retry_all_but_a_success(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    done = end(stack, provider, JobState.SUCCEEDED)
    with pytest.raises(WrongState, match="succeeded"):
        stack.jobs.retry(done.id)
    with pytest.raises(WrongState, match="succeeded"):
        stack.operations.start("retry", JobFilter(state=JobState.SUCCEEDED))
    for ending in (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED):
        job = end(stack, provider, ending)
        stack.redis.delete("generation")
        opened = stack.jobs.retry(job.id)
        assert (opened.state, opened.failures, opened.error) == (JobState.QUEUED, 0, None)
        assert opened.finished_at is None
        assert queued_messages(stack) == 1
        with pytest.raises(WrongState, match="queued"):
            stack.jobs.retry(job.id)
        assert run(stack, job).state is JobState.SUCCEEDED


def test_a_cancel_closes_the_call_and_keeps_what_was_produced(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = embed(stack, "a", "b", "c", "d")
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 2 else None
        outcome = pool.submit(run, stack, job)
        gate.wait()
        stack.jobs.cancel(job.id)
        stack.heartbeat.beat()
        assert outcome.result(30).state is JobState.CANCELLED
    ended = stack.jobs.get(job.id)
    assert (ended.state, ended.current, ended.total) == (JobState.CANCELLED, 2, 4)
    assert [attempt.state for attempt in attempts(stack, job)] == ["succeeded", "cancelled"]
    agrees(stack, job)
    stack.jobs.retry(job.id)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a", "b", "c", "d", "c", "d"]


def test_a_cancel_before_the_request_leaves_keeps_it_from_leaving(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    generation, embedding = generate(stack), embed(stack, "a", "b", "c")

    def cancel_at(current: int, job: JobView) -> Callable[[Progress], None]:
        def report(shown: Progress) -> None:
            if (shown.current, shown.total) == (current, 3 if current else 1):
                cancel(stack, job)

        return report

    outcome = execute(stack, generation.id, cancel_at(0, generation))
    assert (outcome.state, provider.calls) == (JobState.CANCELLED, 0)
    outcome = execute(stack, embedding.id, cancel_at(2, embedding))
    assert (outcome.state, provider.calls) == (JobState.CANCELLED, 1)
    assert [attempt.state for attempt in attempts(stack, embedding)] == ["succeeded"]


def test_a_retry_is_taken_up_while_the_cancelled_call_still_closes(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = generate(stack)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        first = pool.submit(run, stack, job)
        gate.wait()
        stack.jobs.cancel(job.id)
        stack.jobs.retry(job.id)
        # Its message may come to this very worker, which has the first attempt in hand.
        assert run(stack, job).state is JobState.SUCCEEDED
        stack.heartbeat.beat()
        assert first.result(30).state is JobState.SUCCEEDED
    assert [attempt.state for attempt in attempts(stack, job)] == ["cancelled", "succeeded"]


def test_an_answer_that_comes_after_a_cancel_does_not_undo_it(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    generation = generate(stack)
    provider.on_call = lambda: cancel(stack, generation)
    assert run(stack, generation).state is JobState.CANCELLED
    # It is paid for, and kept: a retry does not pay again.
    kept = stack.jobs.get(generation.id).result
    assert kept is not None
    assert stack.jobs.retry(generation.id).state is JobState.SUCCEEDED
    assert stack.jobs.get(generation.id).result == kept
    assert run(stack, generation).state is JobState.SUCCEEDED
    assert provider.calls == 1
    provider.prompts.clear()
    embedding = embed(stack, "a", "b", "c")
    provider.on_call = lambda: cancel(stack, embedding)
    assert run(stack, embedding).state is JobState.CANCELLED
    # Its vectors are paid for, and kept.
    stack.jobs.retry(embedding.id)
    provider.on_call = lambda: None
    assert run(stack, embedding).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a", "b", "c"]


def test_a_deadline_ends_a_waiting_and_a_running_job(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    provider.on_call = raises(RateLimited("slow down", retry_after=600.0))
    waiting, running = generate(stack), generate(stack)
    run(stack, waiting)
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        outcome = pool.submit(run, stack, running)
        gate.wait()
        sql(stack, "UPDATE jobs SET expires_at = now()")
        stack.reconciler.run_once()
        stack.heartbeat.beat()
        assert outcome.result(30).state is JobState.EXPIRED
    for job in (waiting, running):
        ended = stack.jobs.get(job.id)
        assert (ended.state, ended.error_code) == (JobState.EXPIRED, "EXPIRED")
        # It waits for nothing any more.
        assert ended.not_before is None
        assert stack.progress.read([job.id])[job.id].retry_at == 0
    agrees(stack, waiting, running)


def test_a_job_whose_user_is_deleted_in_mid_call_ends_quietly(
    stack: WorkerServices, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    with stack.ledger.transaction() as unit:
        user_id = unit.users.create(email="ada@example.org").id
    jobs = [generate(stack, user_id=user_id), embed(stack, "a", "b", "c", user_id=user_id)]
    provider.on_call = lambda: sql(stack, "DELETE FROM users")
    for job in jobs:
        assert run(stack, job).state is None
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [attempts(stack, job) for job in jobs] == [[], []]
