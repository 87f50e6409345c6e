"""A job that has to wait does so in the ledger, and its worker does others."""

import asyncio
import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery.result import AsyncResult

from promptstack.repositories.models import JobState
from promptstack.services.documents.embedding import DocumentEmbedder
from promptstack.services.llm.errors import (
    Overloaded,
    RateLimited,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, Gate, raises
from tests.jobs import (
    attempts,
    claim,
    embed,
    first_words,
    generate,
    make_due,
    queued_messages,
    row,
    run,
    state,
)
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator


def test_a_job_that_waits_long_for_passages_of_another_job_leaves_the_worker(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    stack.document_embedder = DocumentEmbedder(
        stack.provider_calls,
        stack.providers,
        stack.cutter,
        stack.bytes_in_flight,
        patience_seconds=0.1,
    )
    job, same = embed(stack, "a"), embed(stack, "a", source="b.txt")
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        first = pool.submit(run, stack, job)
        gate.wait()
        assert run(stack, same).state is JobState.QUEUED
        waits = stack.jobs.get(same.id)
        assert (waits.failures, waits.error_code) == (0, "EMBEDDED_ELSEWHERE")
        gate.open()
        assert first.result(30).state is JobState.SUCCEEDED
    make_due(stack, same)
    assert run(stack, same).state is JobState.SUCCEEDED
    assert first_words(provider.embedded) == ["a"]


def test_a_job_that_backs_off_lies_in_the_ledger_until_it_is_due(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    provider.on_call = raises(Overloaded("busy", retry_after=600.0))
    job = generate(stack)
    stack.redis.delete("generation")  # its message is taken
    threads = set(threading.enumerate())
    outcome = run(stack, job)
    assert outcome.state is JobState.QUEUED
    assert outcome.error == "PROVIDER_OVERLOADED: busy"
    assert outcome.retry_in == pytest.approx(600, abs=30)
    # The event loop, what writes to the ledger for all jobs, and what sends others after one: none
    # of them waits with the job.
    began = {thread.name.split("_")[0] for thread in set(threading.enumerate()) - threads}
    assert began <= {"event-loop", "group-commit", "ledger", "asyncio", "after-job"}
    assert stack.group_commit.waiting_steps == 0
    waiting = row(stack, job)
    assert (waiting.state, waiting.worker_id, waiting.published_at) == (JobState.QUEUED, None, None)
    assert (waiting.attempt, waiting.failures) == (1, 1)
    # No message with an ETA, which would lie in a worker's memory; and none before its time.
    assert queued_messages(stack) == 0
    assert stack.reconciler.run_once()["messages"] == 0
    assert claim(stack, job) is None
    make_due(stack, job)
    assert stack.reconciler.run_once()["messages"] == 1
    assert queued_messages(stack) == 1
    assert run(stack, job).state is JobState.SUCCEEDED


def test_an_absurd_retry_after_does_not_stop_the_worker(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """However long a provider says: the job waits, or ends, and is not asked again at once."""
    waits = [math.inf, math.nan, 1e13, -5.0]
    provider.on_call = raises(*(RateLimited("slow down", retry_after=wait) for wait in waits))
    for _ in waits:
        job = generate(stack)
        run(stack, job)
        stack.heartbeat.beat()
        left = row(stack, job)
        assert JobState(left.state).is_final or left.not_before is not None


def test_a_call_that_cancels_itself_counts_as_a_failure(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Nobody asked for that; handed back untried, the job would go round for ever."""
    provider.on_call = raises(asyncio.CancelledError())
    job = generate(stack)
    assert run(stack, job).state is JobState.QUEUED
    left = stack.jobs.get(job.id)
    assert (left.failures, left.error_code) == (1, "PROVIDER_UNREACHABLE")


def test_an_error_of_any_characters_is_noted_and_tried_again(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    """Also where a provider's words, or a header of its answer, can't be stored as they are."""
    provider.on_call = raises(Overloaded("busy (request \x00)", request_id="\x00"))
    job = generate(stack)
    assert run(stack, job).state is JobState.QUEUED
    [attempt] = attempts(stack, job)
    assert (attempt.state, attempt.error_code) == ("failed", "PROVIDER_OVERLOADED")
    assert stack.jobs.get(job.id).error_code == "PROVIDER_OVERLOADED"


def test_waiting_jobs_leave_the_worker_free_and_celery_shows_retry(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    with ForkedSimulator() as simulator:
        limited = {"kind": "status", "status": 429, "retry_after_ms": 300_000}
        simulator.control(limited, limited, limited)
        start_worker(WORKER_CONCURRENCY="1", OPENAI_BASE_URL=simulator.url, OPENAI_API_KEY="test")
        waiting = [stack.jobs.enqueue_generation(f"{n}", provider="openai") for n in range(3)]
        free = stack.jobs.enqueue_generation("x")
        wait_until(lambda: state(stack, free) is JobState.SUCCEEDED, "a job behind the waiting")
        for job in waiting:
            result: AsyncResult[Any] = AsyncResult(str(job.id), app=stack.celery)
            wait_until(lambda result=result: result.state == "RETRY", "Celery's view of it")  # type: ignore[misc]
            # The first was told so; the others then knew it from the limiter.
            assert "RATE_LIMIT" in str(result.result)
            shown = stack.jobs.get(job.id)
            assert (shown.state, shown.attempt, shown.failures) == (JobState.QUEUED, 1, 0)
