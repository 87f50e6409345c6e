"""Servers and providers that go away and come back while real workers run."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery.result import AsyncResult
from kombu import Connection, Producer
from kombu.transport import TRANSPORT_ALIASES
from redis import Redis

from promptstack.config.celery import kombu_url
from promptstack.config.settings import load_settings
from promptstack.embedded.valkey import Valkey
from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.composition import PromptStack
from promptstack.worker.process import EXIT_HUNG
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator


@pytest.fixture
def simulator() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as running:
        yield running


@dataclass
class Broker:
    """A Valkey of the test's own, which may go away, and a caller of it."""

    server: Valkey
    url: str
    caller: PromptStack


@pytest.fixture
def broker(environment: dict[str, str], tmp_path: Path) -> Iterator[Broker]:
    server = Valkey(tmp_path / "broker", durable=False)
    url = server.start(None)
    try:
        with PromptStack.open(load_settings(_env_file=None, redis_url=url)) as caller:
            yield Broker(server, url, caller)
    finally:
        server.stop()


def is_done(stack: PromptStack, *jobs: JobView) -> bool:
    return all(stack.jobs.get(job.id).state.is_final for job in jobs)


def test_a_redis_that_is_full_for_a_while_ends_no_worker(
    start_worker: Callable[..., Process], broker: Broker
) -> None:
    worker = start_worker(REDIS_URL=broker.url, CELERY_BROKER_URL=kombu_url(broker.url))
    done = broker.caller.jobs.enqueue_generation("before")
    wait_until(lambda: is_done(broker.caller, done), "the worker to work")
    with Redis.from_url(broker.url) as redis:
        # It is asked to write as it looks for messages that were taken and not acknowledged.
        redis.config_set("maxmemory", "1")
        redis.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: "OutOfMemory" in worker.output(), "the worker to notice")
        redis.config_set("maxmemory", "0")
    after = broker.caller.jobs.enqueue_generation("after")
    wait_until(lambda: is_done(broker.caller, after), "the worker to work again")
    assert worker.is_running
    assert "Unrecoverable" not in worker.output()


def test_a_broker_connection_that_is_gone_is_closed_without_an_error(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With messages that were taken and not acknowledged; as kombu does it in a worker."""
    monkeypatch.setitem(TRANSPORT_ALIASES, "mended", "promptstack.tasks.broker:BrokerTransport")
    address = kombu_url(broker.url).replace("redis", "mended", 1)
    with Connection(address) as connection:
        channel: Any = connection.default_channel
        queue = channel.queue_declare("some").queue
        Producer(channel).publish({}, routing_key=queue)
        message = channel.basic_get(queue)
        assert message is not None
        channel.connection.client = None
        channel.__dict__.pop("_pool", None)
        channel.close()


def test_a_job_is_accepted_while_the_broker_is_down_and_runs_when_it_is_back(
    start_worker: Callable[..., Process], broker: Broker
) -> None:
    caller = broker.caller
    start_worker(REDIS_URL=broker.url)
    before = caller.jobs.enqueue_generation("before the outage")
    wait_until(lambda: is_done(caller, before), "the worker to work")
    broker.server.stop()
    during = caller.jobs.enqueue_generation("during the outage")
    embedding = caller.jobs.enqueue_embedding("text during the outage", source="a")
    assert caller.jobs.get(during.id).state is JobState.QUEUED
    broker.server.start(None)
    wait_until(lambda: is_done(caller, during, embedding), "both jobs to end")
    states = {caller.jobs.get(job.id).state for job in (during, embedding)}
    assert states == {JobState.SUCCEEDED}


def test_jobs_that_end_while_redis_is_away_cost_the_worker_no_slot(
    start_worker: Callable[..., Process], broker: Broker
) -> None:
    """Their result can't be shown, and Celery counts what its result store raises against it."""
    caller = broker.caller
    worker = start_worker(REDIS_URL=broker.url, WORKER_CONCURRENCY="2")
    jobs = [
        caller.jobs.enqueue_generation(f"{number}", options={"delay_seconds": 1})
        for number in range(2)
    ]
    wait_until(lambda: are_in(JobState.RUNNING, caller, *jobs), "both slots to be taken")
    broker.server.stop()
    wait_until(lambda: are_in(JobState.SUCCEEDED, caller, *jobs), "both to end")
    ends = [f"[{job.id}] succeeded in" for job in jobs]
    wait_until(lambda: all(end in worker.output() for end in ends), "Celery to know")
    broker.server.start(None)
    more = [caller.jobs.enqueue_generation(f"{number}") for number in range(4)]
    wait_until(lambda: are_in(JobState.SUCCEEDED, caller, *more), "others to run")
    results: list[Any] = [AsyncResult(str(job.id), app=caller.celery) for job in (*jobs, *more)]
    wait_until(lambda: {each.state for each in results} == {"SUCCESS"}, "all to be told")


def test_a_worker_ends_in_time_while_redis_hangs(
    start_worker: Callable[..., Process], broker: Broker, tmp_path: Path
) -> None:
    server = next(
        process
        for process in psutil.process_iter(["cwd", "cmdline"])
        if str(tmp_path / "broker") in f"{process.info['cwd']} {process.info['cmdline']}"
    )
    caller = broker.caller
    worker = start_worker(REDIS_URL=broker.url, SHUTDOWN_GRACE_SECONDS="0.5")
    job = caller.jobs.enqueue_generation("x", options={"delay_seconds": 60})
    wait_until(lambda: are_in(JobState.RUNNING, caller, job), "the job to run")
    server.suspend()
    try:
        worker.send(signal.SIGTERM)
        assert worker.wait(60) == EXIT_HUNG
        assert "in run" in worker.output().split("where its threads are:")[1]
    finally:
        server.resume()
    # Handed back or freed: another worker takes it.
    start_worker(REDIS_URL=broker.url)
    wait_until(lambda: caller.jobs.get(job.id).attempt == 2, "another worker to take it")


def are_in(state: JobState, stack: PromptStack, *jobs: JobView) -> bool:
    return all(stack.jobs.get(job.id).state is state for job in jobs)


def test_a_failing_provider_is_asked_again_and_paid_once(
    stack: PromptStack, start_worker: Callable[..., Process], simulator: SimulatorProcess
) -> None:
    start_worker(OPENAI_BASE_URL=simulator.url, OPENAI_API_KEY="test")
    simulator.control(
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429, "retry_after_ms": 300},
        {"kind": "reset"},
    )
    job = stack.jobs.enqueue_generation("Name a colour.", provider="openai", model="any-model")
    wait_until(lambda: is_done(stack, job), "the generation to end")
    done = stack.jobs.get(job.id)
    assert done.state is JobState.SUCCEEDED
    # The rate limit cost no retry, and so short a wait no way back to the queue.
    assert (done.attempt, done.failures) == (3, 2)
    assert [call.error_code for call in stack.jobs.get_attempts(job.id)] == [
        "PROVIDER_OVERLOADED",
        "RATE_LIMITED",
        "PROVIDER_UNREACHABLE",
        None,
    ]
    document = stack.jobs.enqueue_embedding(
        "\n\n".join(f"Paragraph {n}. " + "word " * 400 for n in range(30)),
        source="paragraphs.txt",
        provider="openai",
    )
    again = stack.jobs.enqueue_embedding("Paragraph one.", source="other.txt", provider="openai")
    wait_until(lambda: is_done(stack, document, again), "the embeddings to end")
    result = stack.jobs.get(document.id).result
    assert result is not None
    assert (result["chunks"], result["embedded"], result["provider_calls"]) == (30, 30, 1)
    assert result["dimensions"] == 1536
    billed = simulator.ledger()
    assert len(billed) == 32
    assert set(billed.values()) == {1}


def test_a_refused_request_is_not_retried(
    stack: PromptStack, start_worker: Callable[..., Process], simulator: SimulatorProcess
) -> None:
    start_worker(OPENAI_BASE_URL=simulator.url, OPENAI_API_KEY="test")
    simulator.control({"kind": "status", "status": 429, "code": "insufficient_quota"})
    job = stack.jobs.enqueue_generation("x", provider="openai")
    wait_until(lambda: is_done(stack, job), "the generation to end")
    done = stack.jobs.get(job.id)
    assert (done.state, done.error_code) == (JobState.FAILED, "QUOTA_EXHAUSTED")
    assert simulator.stats()["requests"] == 1
