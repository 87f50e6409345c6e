"""No prompt, answer or key is in the broker, in Redis or in the log."""

import json
import logging
from base64 import b64decode
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from celery.result import AsyncResult
from pydantic import JsonValue
from redis import Redis

from promptstack.config.names import TEXT_KEY
from promptstack.repositories.models import JobState
from promptstack.services.llm.errors import (
    Overloaded,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, raises
from tests.jobs import generate, run, state
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator

MARK = "marmalade"
"""Stands in prompts, documents and answers, and may stand nowhere but in PostgreSQL."""


def everything_in(redis_url: str) -> str:
    """Every key and value of a Redis database as text, also what is in base64 within it."""
    found: list[bytes] = []
    with Redis.from_url(redis_url) as redis:
        readers: dict[bytes, Callable[[bytes], Any]] = {
            b"string": redis.get,
            b"list": lambda key: redis.lrange(key, 0, -1),
            b"set": redis.smembers,
            b"hash": redis.hgetall,
            b"zset": lambda key: redis.zrange(key, 0, -1),
            b"stream": redis.xrange,
        }
        for key in redis.scan_iter():
            found += [key, repr(readers[redis.type(key)](key)).encode()]
    text_ = b"\n".join(found).decode(errors="replace")
    for word in text_.replace('\\"', '"').split('"'):
        if len(word) > 20 and len(word) % 4 == 0:
            try:
                text_ += b64decode(word, validate=True).decode(errors="replace")
            except ValueError:
                continue
    return text_


def test_a_message_is_json_and_holds_only_the_jobs_id(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    job = generate(stack, f"{MARK} {MARK}", system=MARK, idempotency_key=MARK, stop=[MARK])
    raw: Any = stack.redis.lrange("generation", 0, -1)
    [message] = [json.loads(entry) for entry in raw]
    assert (message["content-type"], message["headers"]["task"]) == (
        "application/json",
        "tasks.generation.generate_text",
    )
    arguments, keywords, _ = json.loads(b64decode(message["body"]))
    [job_id, sent_at] = arguments
    assert (job_id, keywords) == (str(job.id), {})
    assert datetime.fromisoformat(sent_at) == job.created_at
    assert MARK not in everything_in(stack.redis_url)


def test_no_content_and_no_key_is_in_redis_or_the_log(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    fates: list[dict[str, JsonValue]] = [
        {},
        {"fail_times": 1},
        {"fail_times": 9, "fail_with": "invalid"},
        {"delay_seconds": MARK},
    ]
    generations = [
        stack.jobs.enqueue_generation(f"{MARK} {number}", options=options)
        for number, options in enumerate(fates)
    ]
    embedding = stack.jobs.enqueue_embedding(f"{MARK} document", source=f"{MARK}.txt")
    seen = everything_in(stack.redis_url)
    assert str(embedding.id) in seen
    assert MARK not in seen
    with ForkedSimulator() as simulator:
        simulator.control({"kind": "status", "status": 400})
        address = {"OPENAI_BASE_URL": simulator.url, "OPENAI_API_KEY": f"sk-{MARK}"}
        worker = start_worker(DEBUG="true", LOG_FORMAT="json", **address)
        generations += [
            stack.jobs.enqueue_generation(f"{MARK} {number}", provider="openai")
            for number in range(2)
        ]
        wait_until(lambda: simulator.stats()["requests"] == 2, "both calls")
        simulator.control({"kind": "error_event", "status": 400})
        streamed = [
            stack.jobs.enqueue_generation(f"{MARK} {name}", provider=name, stream=True)
            for name in ("openai", "demo")
        ]
        generations += streamed
        for job in (*generations, embedding):
            wait_until(lambda job=job: state(stack, job).is_final, f"its end; {worker.log}")  # type: ignore[misc]
            ready: AsyncResult[Any] = AsyncResult(str(job.id), app=stack.celery)
            wait_until(ready.ready, "its result in the backend")
    answered = [stack.jobs.get(job.id).result for job in generations]
    assert sum(result is not None for result in answered) == 4
    assert MARK in json.dumps(answered)
    # But for the texts of the jobs that asked for a stream: they are shown there, for a while.
    assert stack.redis.delete(*(TEXT_KEY.format(id=job.id) for job in streamed)) == 2
    assert MARK not in everything_in(stack.redis_url)
    assert str(embedding.id) in worker.output()
    assert MARK not in worker.output()


def test_also_a_bug_that_quotes_a_prompt_stays_out_of_sight(
    stack: WorkerServices, provider: FakeProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider.on_call = raises(KeyError(f"{MARK} in a bug"), Overloaded("busy", detail=MARK))
    jobs = [generate(stack, MARK), generate(stack, MARK)]
    outcomes = [run(stack, job) for job in jobs]
    assert [outcome.state for outcome in outcomes] == [JobState.FAILED, JobState.QUEUED]
    shown = [repr(outcomes), caplog.text, everything_in(stack.redis_url)]
    shown += [str(stack.jobs.get(job.id).error) for job in jobs]
    assert MARK not in "".join(shown)
    # To the job's owner only:
    assert stack.jobs.get_attempts(jobs[1].id)[0].detail == MARK
