"""Flower and AsyncResult tell the truth about jobs, and never their content."""

import json
import signal
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from pydantic import JsonValue, SecretStr

from promptstack.api.flower.dashboard import Listen
from promptstack.config.errors import ConfigurationError
from promptstack.config.names import TaskName
from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.tasks.composition import PromptStack
from tests.flower import TABLE, FlowerClient
from tests.processes import Process, wait_until

MARK = "xyzzyplugh"
"""Stands in prompts, answers and documents, and must stand nowhere else."""


@pytest.fixture
def flower(start_flower: Callable[..., Process], stack: PromptStack) -> FlowerClient:
    client = FlowerClient(start_flower())
    # Its subscription to events: an event that is sent before it is nobody's.
    wait_until(stack.redis.pubsub_numpat, "Flower's subscription")
    return client


def result(stack: PromptStack, job: JobView) -> Any:  # celery-types knows no state of our own
    return AsyncResult(str(job.id), app=stack.celery)


def both_show(stack: PromptStack, flower: FlowerClient, job: JobView, state: str) -> dict[str, Any]:
    """Wait until Flower and AsyncResult agree on a job's state; what Flower says of it."""
    wait_until(lambda: result(stack, job).state == state, f"{state} in AsyncResult")
    return flower.shows(job, state)


def states(stack: PromptStack, flower: FlowerClient, job: JobView) -> tuple[str, str]:
    return flower.task(job)["state"], result(stack, job).state


def publish_again(stack: PromptStack, worker: Process, job_id: UUID, *, running: int = 0) -> None:
    """Deliver a job's message once more; wait until all but the `running` ones are dealt with."""
    task = f"Task {TaskName.GENERATE_TEXT}[{job_id}] "
    received, dealt_with = f"{task}received", f"celery.app.trace: {task}"
    before = worker.output().count(received)
    stack.celery.send_task(
        str(TaskName.GENERATE_TEXT),
        args=[str(job_id)],
        task_id=str(job_id),
        argsrepr=f"job {job_id} with demo/demo-1",
    )
    wait_until(lambda: worker.output().count(received) > before, "the message to arrive")

    def is_dealt_with() -> bool:
        log = worker.output()
        return log.count(dealt_with) >= log.count(received) - running

    wait_until(is_dealt_with, "the worker to be done with the message")


def check_no_content(flower: FlowerClient, worker: Process, *jobs: JobView) -> None:
    """Look through every page and answer of Flower, and through the logs."""
    assert json.loads(flower.get(f"/api/tasks?search={MARK}")) == {}
    assert MARK not in flower.read_everything(*(job.id for job in jobs))
    assert MARK not in worker.output()
    assert MARK not in flower.process.output()


def test_success(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    worker = start_worker()
    job = stack.jobs.enqueue_generation(f"Say {MARK}.", system=f"Be {MARK}.")
    wait_until(lambda: "'state': 'succeeded'" in str(flower.task(job).get("result")), "the result")
    task = both_show(stack, flower, job, "SUCCESS")
    assert task["name"] == "tasks.generation.generate_text"
    assert task["args"] == f"job {job.id} with demo/demo-1"
    assert task["kwargs"] == ""
    summary = result(stack, job).get(timeout=5)
    assert (summary["job"], summary["state"], summary["calls"]) == (str(job.id), "succeeded", 1)
    assert summary["tokens"] > 0
    assert MARK in (stack.jobs.get(job.id).result or {})["text"]
    [row] = json.loads(flower.get(TABLE))["data"]
    assert row["args"] == "demo/demo-1"
    assert row["result"] == f"done 1, calls 1, tokens {summary['tokens']}"
    publish_again(stack, worker, job.id)
    assert states(stack, flower, job) == ("SUCCESS", "SUCCESS")
    check_no_content(flower, worker, job)


def test_progress_of_a_document(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    worker = start_worker()
    text = "\n\n".join(f"{MARK} {number}: " + "word " * 400 for number in range(1_000))
    job = stack.jobs.enqueue_embedding(text, source=f"{MARK}.txt")
    shown: set[tuple[str, Any]] = set()

    def is_done() -> bool:
        task, info = flower.task(job), result(stack, job).info or {}
        shown.add((task.get("state", ""), task.get("result")))
        if "current" in info:
            shown.add(("AsyncResult", (info["current"], info["total"])))
        return bool(task.get("state") == "SUCCESS" and info.get("state") == "succeeded")

    wait_until(is_done, "the document's end")
    total = stack.jobs.get(job.id).total
    steps = {int(text.split(" of ")[0]) for state, text in shown if state == "PROGRESS"}
    assert any(0 < step < total for step in steps)
    assert any(state == "AsyncResult" and 0 < pair[0] < pair[1] == total for state, pair in shown)
    task = flower.task(job)
    assert task["name"] == "tasks.embeddings.generate_embeddings"
    assert task["args"] == f"job {job.id} with local/wordllama-256"
    assert f"'done': {total}" in task["result"]
    check_no_content(flower, worker, job)


def test_progress_of_a_generation_that_is_delivered_twice_and_then_cancelled_and_retried(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    worker = start_worker()
    job = stack.jobs.enqueue_generation(MARK, options={"delay_seconds": 5})
    assert both_show(stack, flower, job, "PROGRESS")["result"] == "0 of 1"
    publish_again(stack, worker, job.id, running=1)
    assert states(stack, flower, job) == ("PROGRESS", "PROGRESS")
    assert result(stack, job).info == {"current": 0, "total": 1}

    stack.jobs.cancel(job.id)
    both_show(stack, flower, job, "REVOKED")
    with pytest.raises(TaskRevokedError, match="cancelled"):
        result(stack, job).get(timeout=5)
    publish_again(stack, worker, job.id)
    assert states(stack, flower, job) == ("REVOKED", "REVOKED")

    stack.jobs.retry(job.id)
    both_show(stack, flower, job, "PROGRESS")
    both_show(stack, flower, job, "SUCCESS")
    check_no_content(flower, worker, job)


def test_retry_with_its_reason(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    worker = start_worker(RETRY_BACKOFF_SECONDS="100000", RETRY_BACKOFF_MAX_SECONDS="100000")
    reason = "The demo provider was told to fail this attempt."
    job = stack.jobs.enqueue_generation(MARK, options={"fail_times": 1})
    task = both_show(stack, flower, job, "RETRY")
    assert reason in task["exception"]
    assert reason in str(result(stack, job).result)
    publish_again(stack, worker, job.id)
    both_show(stack, flower, job, "RETRY")
    check_no_content(flower, worker, job)

    # No message travels for this one: only the ledger can tell.
    stack.jobs.cancel(job.id)
    flower.shows(job, "REVOKED")


def test_failure_with_its_reason(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    worker = start_worker()
    options: dict[str, JsonValue] = {"fail_times": 1, "fail_with": "invalid", "delay_seconds": 3}
    reason = "The demo provider was told to refuse this request."
    job = stack.jobs.enqueue_generation(MARK, options=options)
    task = both_show(stack, flower, job, "FAILURE")
    assert reason in task["exception"]
    view = result(stack, job)
    assert reason in str(view.result)
    assert view.traceback
    assert MARK not in view.traceback
    publish_again(stack, worker, job.id)
    assert states(stack, flower, job) == ("FAILURE", "FAILURE")

    stack.jobs.retry(job.id)
    both_show(stack, flower, job, "PROGRESS")
    both_show(stack, flower, job, "FAILURE")

    stranger = uuid4()
    publish_again(stack, worker, stranger)
    assert AsyncResult(str(stranger), app=stack.celery).state == "PENDING"
    check_no_content(flower, worker, job)


def test_cancelled_before_a_worker_met_it(
    stack: PromptStack, start_worker: Callable[..., Process], flower: FlowerClient
) -> None:
    job = stack.jobs.enqueue_generation(MARK)
    assert flower.shows(job, "PENDING")["name"] == "tasks.generation.generate_text"
    stack.jobs.cancel(job.id)
    worker = start_worker()
    flower.shows(job, "REVOKED")
    # Flower knew from the ledger, maybe before the worker met the message.
    wait_until(lambda: result(stack, job).state == "REVOKED", "Celery to know it")
    check_no_content(flower, worker, job)


def test_what_happened_before_flower_started(
    stack: PromptStack,
    start_worker: Callable[..., Process],
    start_flower: Callable[..., Process],
) -> None:
    worker = start_worker(RETRY_BACKOFF_SECONDS="100000", RETRY_BACKOFF_MAX_SECONDS="100000")
    options: dict[str, JsonValue] = {"fail_times": 1}
    succeeds = stack.jobs.enqueue_generation(MARK)
    waits = stack.jobs.enqueue_generation(MARK, options=options)
    fails = stack.jobs.enqueue_generation(MARK, options={**options, "fail_with": "invalid"})
    wait_until(lambda: stack.jobs.get(waits.id).failures, "a retry")
    wait_until(lambda: stack.jobs.get(succeeds.id).state.is_final, "a success")
    wait_until(lambda: stack.jobs.get(fails.id).state.is_final, "a failure")
    cancelled = stack.jobs.enqueue_generation(MARK, options={"delay_seconds": 60})
    wait_until(lambda: stack.jobs.get(cancelled.id).state is JobState.RUNNING, "a start")
    flower = FlowerClient(start_flower())
    assert flower.shows(succeeds, "SUCCESS")["args"] == f"job {succeeds.id} with demo/demo-1"
    assert "told to fail" in flower.shows(waits, "RETRY")["exception"]
    assert "told to refuse" in flower.shows(fails, "FAILURE")["exception"]
    assert flower.shows(cancelled, "PROGRESS")["result"] == "0 of 1"
    stack.jobs.cancel(cancelled.id)
    flower.shows(cancelled, "REVOKED")
    check_no_content(flower, worker, succeeds, waits, fails, cancelled)


def test_flower_shows_and_does_not_act(flower: FlowerClient) -> None:
    for path in ("task/revoke/x", "task/send-task/x", "task/apply/x", "worker/shutdown/x"):
        assert flower.status(f"/api/{path}", data=b"{}") == 403
    with flower.open("/api/tasks") as response:
        assert response.headers["Access-Control-Allow-Origin"] is None


def test_flower_refuses_foreign_host_names(
    flower: FlowerClient,
) -> None:
    for host, status in (
        ("127.0.0.1", 200),
        ("localhost:5555", 200),
        ("[::1]:5555", 200),
        ("evil.example", 400),
        ("evil.example:80", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ):
        assert flower.status("/api/workers", host=host) == status, host


def test_flower_ends_a_request_of_which_the_rest_never_comes(
    start_flower: Callable[..., Process],
) -> None:
    client = FlowerClient(start_flower(REQUEST_READ_SECONDS="1"))
    port = urlsplit(client.url).port
    start = b"POST /api/workers HTTP/1.1\r\nHost: localhost\r\n"
    for half in (b"GET / HT", start + b"Content-Length: 100\r\n\r\n{"):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(half)
            while connection.recv(1_000):  # until it is closed
                pass


def test_hosts_of_others_are_answered_only_with_a_password() -> None:
    secret = SecretStr("me:secret")
    anyone = Listen("127.0.0.1", 0, None, allowed_hosts=["*"])
    assert not anyone.is_ours("evil.example")
    assert Listen("127.0.0.1", 0, secret, allowed_hosts=["*"]).is_ours("evil.example")
    named = Listen("10.0.0.1", 0, secret, allowed_hosts=["flower.example.org", "*.example.net"])
    for host in ("localhost", "10.0.0.1", "flower.example.org", "a.example.net"):
        assert named.is_ours(host)
    for host in ("example.org", "evil.example", "example.net", "*"):
        assert not named.is_ours(host)


def test_flower_asks_for_its_password_and_ends_in_order(
    start_flower: Callable[..., Process],
) -> None:
    credentials = "watcher:wachtwoord"
    process = start_flower("--host", "0.0.0.0", FLOWER_BASIC_AUTH=credentials)
    stranger, watcher = FlowerClient(process), FlowerClient(process, credentials=credentials)
    for path in ("/", "/tasks", "/broker", "/api/tasks", "/api/workers"):
        assert stranger.status(path) == 401
        assert watcher.status(path) == 200
    # As docs/operating.md says: open, with numbers and names only.
    for path in ("/healthcheck", "/metrics"):
        assert stranger.status(path) == 200
    # Flower compares ASCII only: at anything else it broke, and showed everybody its traceback.
    for wrong in (credentials[:-1], "watcher:wächter", "\udcff:x", "watcher", ":", ""):
        assert FlowerClient(process, credentials=wrong).status("/api/tasks") == 401
    assert "Traceback" not in process.output()
    process.send(signal.SIGTERM)
    assert process.wait() == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "flower.example"])
def test_flower_lets_nobody_in_from_outside_without_a_password(host: str) -> None:
    with pytest.raises(ConfigurationError, match="set FLOWER_BASIC_AUTH"):
        Listen(host, 0, None).check()
    Listen(host, 0, SecretStr("watcher:wachtwoord")).check()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_flower_needs_no_password_on_loopback(host: str) -> None:
    Listen(host, 0, None).check()


@pytest.mark.parametrize("password", ["watcher", "watcher:", ":wachtwoord"])
def test_flower_wants_a_user_and_a_password(password: str) -> None:
    with pytest.raises(ConfigurationError, match="user:password"):
        Listen("127.0.0.1", 0, SecretStr(password)).check()


@pytest.mark.parametrize("credentials", ["watcher:wächter", "wächter:wachtwoord"])
def test_flower_wants_what_it_can_compare(credentials: str) -> None:
    with pytest.raises(ConfigurationError, match="ASCII"):
        Listen("127.0.0.1", 0, SecretStr(credentials)).check()


def test_flower_says_in_one_line_why_it_does_not_start(
    start_flower: Callable[..., Process],
) -> None:
    open_to_all = start_flower("--host", "0.0.0.0")
    not_ours = start_flower("--host", "192.0.2.1", FLOWER_BASIC_AUTH="watcher:wachtwoord")
    for process, told in [(open_to_all, "set FLOWER_BASIC_AUTH"), (not_ours, "Cannot listen")]:
        assert process.wait() == 2
        [line] = process.output().splitlines()
        assert told in line
