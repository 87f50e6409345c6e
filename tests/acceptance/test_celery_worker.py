"""Celery's own ways to look at a worker and to stop it, with jobs that are coroutines."""

import json
import signal
from base64 import b64encode
from collections.abc import Callable
from typing import Any

from celery.result import AsyncResult

from promptstack.config.names import Queue, TaskName
from promptstack.repositories.models import JobState
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.jobs.views import JobView
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.messages import task_message
from tests.processes import Process, wait_until


def control(stack: PromptStack) -> Any:
    return stack.celery.control


def is_running(stack: PromptStack, *jobs: JobView) -> bool:
    return all(stack.jobs.get(job.id).state is JobState.RUNNING for job in jobs)


def has_succeeded(stack: PromptStack, *jobs: JobView) -> bool:
    return all(stack.jobs.get(job.id).state is JobState.SUCCEEDED for job in jobs)


def slow(stack: PromptStack, seconds: float, count: int = 1) -> list[JobView]:
    return [
        stack.jobs.enqueue_generation(f"{number}", options={"delay_seconds": seconds})
        for number in range(count)
    ]


def test_inspect_shows_the_jobs_that_run_and_no_more_of_them_than_fit(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker(WORKER_CONCURRENCY="3")
    jobs = slow(stack, 60, 5)
    wait_until(lambda: is_running(stack, *jobs[:3]), "three jobs to run")
    inspect = control(stack).inspect(timeout=30, limit=1)
    [active] = inspect.active().values()
    assert {task["id"] for task in active} == {str(job.id) for job in jobs[:3]}
    assert {task["name"] for task in active} == {TaskName.GENERATE_TEXT}
    [stats] = inspect.stats().values()
    assert stats["pool"]["max-concurrency"] == stats["pool"]["running"] == 3
    # What does not fit waits where other workers find it.
    assert stack.redis.llen(Queue.GENERATION) == 2
    assert {stack.jobs.get(job.id).state for job in jobs[3:]} == {JobState.QUEUED}


def test_a_revoked_task_is_not_run_by_workers_that_were_told(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    told = start_worker(WORKER_CONCURRENCY="1")
    first, revoked = slow(stack, 2, 2)
    wait_until(lambda: is_running(stack, first), "the first job to run")
    control(stack).revoke(str(revoked.id))
    wait_until(lambda: has_succeeded(stack, first), "the first job to end")
    result: Any = AsyncResult(str(revoked.id), app=stack.celery)
    wait_until(lambda: result.state == "REVOKED", "Celery's view of the other one")
    assert stack.jobs.get(revoked.id).state is JobState.QUEUED
    # The ledger knows of no cancel, so the job is not lost by it.
    told.send(signal.SIGTERM)
    assert told.wait() == 0
    start_worker()
    wait_until(lambda: has_succeeded(stack, revoked), "the job to run elsewhere")


def test_a_job_that_runs_is_not_ended_by_a_revoke(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker(WORKER_CONCURRENCY="1")
    [job] = slow(stack, 3)
    wait_until(lambda: is_running(stack, job), "the job to run")
    control(stack).revoke(str(job.id), terminate=True)
    wait_until(lambda: "is not ended by Celery's revoke" in worker.output(), "the word about it")
    wait_until(lambda: has_succeeded(stack, job), "the job to end")
    [after] = slow(stack, 0)
    wait_until(lambda: has_succeeded(stack, after), "the next one to run")


def test_a_worker_that_is_asked_where_it_is_shows_no_content(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker()
    [job] = slow(stack, 60)
    wait_until(lambda: is_running(stack, job), "the job to run")
    worker.send(signal.SIGUSR1)
    wait_until(lambda: "MainThread" in worker.output() or "Thread 0x" in worker.output(), "it")
    assert "LOCAL VARIABLES" not in worker.output()
    assert is_running(stack, job)


def test_a_cold_shutdown_waits_for_no_call(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    leaving = start_worker(SHUTDOWN_GRACE_SECONDS="600")
    [job] = slow(stack, 600)
    wait_until(lambda: stack.jobs.get_attempts(job.id), "the job's call to begin")
    leaving.send(signal.SIGQUIT)
    leaving.wait(60)
    assert stack.jobs.get(job.id).state is JobState.QUEUED
    assert [attempt.state for attempt in stack.jobs.get_attempts(job.id)] == ["cancelled"]
    start_worker()
    wait_until(lambda: len(stack.jobs.get_attempts(job.id)) == 2, "the job to run elsewhere")


def test_a_hang_up_stops_a_worker_in_order(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    leaving = start_worker(SHUTDOWN_GRACE_SECONDS="0.2")
    [job] = slow(stack, 60)
    wait_until(lambda: stack.jobs.get_attempts(job.id), "the job's call to begin")
    leaving.send(signal.SIGHUP)
    assert leaving.wait() == 0
    assert stack.jobs.get(job.id).state is JobState.QUEUED


def test_junk_in_a_queue_ends_no_worker_and_hides_no_result(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    worker = start_worker()
    before = stack.jobs.enqueue_generation("x")
    wait_until(lambda: has_succeeded(stack, before), "the worker to work")
    with stack.ledger.transaction() as unit:
        stored = unit.jobs.get(before.id)
        assert stored is not None
        job_message = json.loads(task_message(JobMessage.of(stored)))
    junk: list[dict[str, Any]] = []
    bodies: list[Any] = [[1], {}, "x", None, [[], {}, {}, {}]]
    for body in bodies:
        encoded = b64encode(json.dumps(body).encode()).decode()
        junk.append({**job_message, "body": encoded})
    junk.append({**job_message, "headers": {**job_message["headers"], "id": 5}})
    junk.append({**job_message, "headers": {"task": TaskName.GENERATE_TEXT, "id": [1]}})
    junk.append({**job_message, "headers": {"task": TaskName.GENERATE_TEXT}})
    for message in junk:
        stack.redis.lpush(Queue.GENERATION, json.dumps(message))
    [job] = slow(stack, 0)
    wait_until(lambda: has_succeeded(stack, job), "the job behind it to run")
    result: Any = AsyncResult(str(job.id), app=stack.celery)
    wait_until(lambda: result.state == "SUCCESS", "Celery's view of it")
    assert worker.is_running
    assert "Unrecoverable" not in worker.output()
    assert "unexpected error" not in worker.output()


def test_a_message_that_names_no_job_fails_and_keeps_no_slot(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker(WORKER_CONCURRENCY="1")
    send: Any = stack.celery.send_task
    strange = [
        send(TaskName.GENERATE_TEXT, args=[17]),
        send(TaskName.RUN_SHARD, args=["not an id"]),
        send(TaskName.RUN_SHARD, kwargs={"prompt": "Hello."}),
        send(TaskName.GENERATE_TEXT, args=[]),
        send(TaskName.GENERATE_TEXT, kwargs={"job": {"a": 1}, "more": 2}),
    ]
    [job] = slow(stack, 0)
    wait_until(lambda: has_succeeded(stack, job), "the job behind them to run")
    wait_until(lambda: {each.state for each in strange} == {"FAILURE"}, "Celery's view of them")
    [active] = control(stack).inspect(timeout=30, limit=1).active().values()
    assert active == []
