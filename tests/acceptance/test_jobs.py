"""The main job through real processes: enqueue, queue, worker, provider, ledger, progress."""

import signal
from collections.abc import Callable
from uuid import UUID

from celery.result import AsyncResult

from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until


def ended(stack: PromptStack, job_id: UUID) -> JobView | None:
    job = stack.jobs.get(job_id)
    return job if job.state.is_final else None


def finish(stack: PromptStack, job: JobView) -> JobView:
    wait_until(lambda: ended(stack, job.id), f"the end of {job.kind} job {job.id}")
    return stack.jobs.get(job.id)


def celery_state(stack: PromptStack, job: JobView) -> str:
    return str(AsyncResult(str(job.id), app=stack.celery).state)


def test_a_generation_ends_with_its_text(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    job = finish(stack, stack.jobs.enqueue_generation("Say hello to the world."))
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert "Say hello to the world." in job.result["text"]
    assert job.result["tokens_used"] == job.result["input_tokens"] + job.result["output_tokens"]
    wait_until(lambda: celery_state(stack, job) == "SUCCESS", "Celery's own view of it")


def test_failures_on_purpose_are_retried_and_then_succeed(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    job = finish(stack, stack.jobs.enqueue_generation("x", options={"fail_times": 2}))
    assert (job.state, job.failures, job.attempt) == (JobState.SUCCEEDED, 2, 3)
    with stack.ledger.transaction() as unit:
        states = [attempt.state for attempt in unit.attempts.get_many(job_id=job.id)]
    assert states == ["failed", "failed", "succeeded"]


def test_a_killed_worker_in_mid_document_costs_nothing_twice(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    text = "\n\n".join(f"Paragraph {number}: " + "word " * 150 for number in range(2_000))
    doomed = start_worker(CHUNK_TOKENS="192")
    job = stack.jobs.enqueue_embedding(text, source="long.txt")
    wait_until(lambda: stack.jobs.get(job.id).current > 0, "the first chunks of the document")
    doomed.kill()
    halfway = stack.jobs.get(job.id)
    assert 0 < halfway.current < halfway.total
    start_worker(CHUNK_TOKENS="192")
    done = finish(stack, job)
    assert done.state is JobState.SUCCEEDED
    assert done.current == done.total == 2_000
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.find_model("local", "wordllama-256")
        assert model is not None
        assert unit.embeddings.count(model) == 2_000
        attempts = unit.attempts.get_many(job_id=job.id)
    assert {attempt.state for attempt in attempts} <= {"succeeded", "lost"}
    paid = sum(attempt.items for attempt in attempts if attempt.state == "succeeded")
    assert paid == 2_000


def test_sigterm_hands_running_work_to_the_next_worker(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    leaving = start_worker(SHUTDOWN_GRACE_SECONDS="0.2")
    job = stack.jobs.enqueue_generation("x", options={"delay_seconds": 3})
    wait_until(lambda: stack.jobs.get(job.id).state is JobState.RUNNING, "the job to run")
    leaving.send(signal.SIGTERM)
    assert leaving.wait() == 0
    assert stack.jobs.get(job.id).state is JobState.QUEUED
    assert stack.jobs.get(job.id).failures == 0
    start_worker()
    assert finish(stack, job).state is JobState.SUCCEEDED


def test_a_second_sigterm_hands_running_work_over_at_once(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    leaving = start_worker(SHUTDOWN_GRACE_SECONDS="600")
    job = stack.jobs.enqueue_generation("x", options={"delay_seconds": 60})
    # Running is not enough: what has not begun its call then is handed back at once.
    wait_until(lambda: stack.jobs.get_attempts(job.id), "the job's call to begin")
    leaving.send(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in leaving.output(), "the first signal to be heard")
    assert stack.jobs.get(job.id).state is JobState.RUNNING
    leaving.send(signal.SIGTERM)
    assert leaving.wait() == 0
    assert stack.jobs.get(job.id).state is JobState.QUEUED


def test_a_rolling_restart_under_load_loses_and_doubles_nothing(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    jobs = [
        stack.jobs.enqueue_generation(f"{number}", options={"delay_seconds": 0.05})
        for number in range(200)
    ]
    workers = [start_worker(WORKER_CONCURRENCY="4") for _ in range(2)]
    for worker in workers:
        start_worker(WORKER_CONCURRENCY="4")
        worker.send(signal.SIGTERM)
        assert worker.wait() == 0
    for job in jobs:
        assert finish(stack, job).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        attempts = unit.attempts.get_many(limit=1_000)
    answered = [attempt.job_id for attempt in attempts if attempt.state == "succeeded"]
    assert sorted(map(str, answered)) == sorted(str(job.id) for job in jobs)


def test_async_result_ends_for_jobs_that_end_without_a_message(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(RETRY_BACKOFF_SECONDS="500", RETRY_BACKOFF_MAX_SECONDS="600")
    waits, overdue = (
        stack.jobs.enqueue_generation("x", options={"fail_times": 1}, expires_in=expires_in)
        for expires_in in (None, 4.0)
    )
    lost = stack.jobs.enqueue_generation("x", options={"delay_seconds": 60}, max_retries=0)
    wait_until(lambda: celery_state(stack, waits) == "RETRY", "the retry to show")
    stack.jobs.cancel(waits.id)
    wait_until(lambda: celery_state(stack, waits) == "REVOKED", "the cancel to show")
    wait_until(lambda: celery_state(stack, overdue) == "FAILURE", "the deadline to show")
    assert stack.jobs.get(overdue.id).state is JobState.EXPIRED
    wait_until(lambda: stack.jobs.get(lost.id).state is JobState.RUNNING, "the job to run")
    worker.kill()
    start_worker()
    wait_until(lambda: celery_state(stack, lost) == "FAILURE", "the death of its worker to show")
    assert stack.jobs.get(lost.id).error_code == "WORKER_LOST"
