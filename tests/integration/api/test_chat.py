"""POST /chat: the answer in time, or the job; and nothing is lost by who goes away."""

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.models import JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.flags.rules import ON
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import execute
from tests.processes import wait_until

CHAT = "/api/v1/chat"


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    stack.flag_service.set("ai_chat", ON, by=Actor.command_line())
    with serve(stack) as opened:
        yield opened


@pytest.fixture
def working(stack: WorkerServices) -> Iterator[WorkerServices]:
    """Runs each new job, as a worker does."""
    stop = threading.Event()
    done: set[UUID] = set()

    def work() -> None:
        while not stop.wait(0.02):
            for job in stack.jobs.get_many(state=JobState.QUEUED):
                if job.id not in done:
                    done.add(job.id)
                    execute(stack, job.id)

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(work)
        yield stack
        stop.set()
        ended.result(30)


def test_the_answer_comes_in_time(client: TestClient, working: WorkerServices) -> None:
    answer = client.post(CHAT, json={"prompt": "Say hello."})
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert (job["state"], bool(job["result"]["text"])) == ("succeeded", True)
    assert answer.headers["Location"] == f"/api/v1/jobs/{job['id']}"
    assert client.get(answer.headers["Location"]).json() == job


def test_a_long_conversation_is_answered_alike(client: TestClient, working: WorkerServices) -> None:
    """Its body is handled in a thread of which there is one: the wait must not be there."""
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(client.post, CHAT, json={"prompt": f"{number} " * 20_000})
            for number in range(4)
        ]
        assert [one.result(60).status_code for one in asked] == [200] * 4


def test_after_the_time_it_is_the_job_that_goes_on(
    client: TestClient, stack: WorkerServices
) -> None:
    answer = client.post(CHAT, json={"prompt": "Say hello.", "wait": 0.2})
    assert answer.status_code == 202
    assert answer.json()["state"] == "queued"
    execute(stack, UUID(answer.json()["id"]))
    assert client.get(answer.headers["Location"]).json()["state"] == "succeeded"


def test_a_request_sent_again_gets_the_answer_that_was_paid_for(
    client: TestClient, stack: WorkerServices
) -> None:
    headers = {"Idempotency-Key": "once"}
    first = client.post(CHAT, json={"prompt": "Hello.", "wait": 0}, headers=headers)
    execute(stack, UUID(first.json()["id"]))
    again = client.post(CHAT, json={"prompt": "Hello.", "wait": 0}, headers=headers)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json()["id"] == first.json()["id"]


def test_a_job_that_fails_is_a_problem_with_its_reason(
    client: TestClient, working: WorkerServices
) -> None:
    failing = {"prompt": "x", "options": {"fail_times": 1, "fail_with": "invalid"}}
    answer = client.post(CHAT, json=failing)
    said = problem(answer, 502, "INVALID_PROVIDER_REQUEST")
    assert "failed" in said["detail"]
    assert client.get(answer.headers["Location"]).json()["state"] == "failed"


def test_a_job_that_is_cancelled_is_a_problem(client: TestClient, stack: WorkerServices) -> None:
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(client.post, CHAT, json={"prompt": "Hello."})
        wait_until(stack.jobs.get_many, "the job")
        [job] = stack.jobs.get_many()
        stack.jobs.cancel(job.id)
        problem(asked.result(30), 502, "JOB_CANCELLED")


def test_a_ledger_that_goes_away_meanwhile_costs_the_answer_and_not_the_job(
    client: TestClient, stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: UUID) -> JobView:
        raise LedgerUnavailable("The database is away.")

    monkeypatch.setattr(stack.jobs, "get", away)
    answer = client.post(CHAT, json={"prompt": "Hello.", "wait": 0.1})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


def test_it_is_for_whom_the_feature_is_on(client: TestClient, stack: WorkerServices) -> None:
    stack.flag_service.unset("ai_chat", by=Actor.command_line())
    problem(client.post(CHAT, json={"prompt": "Hello."}), 403, "FEATURE_OFF")
    assert stack.jobs.get_many() == []


@pytest.mark.parametrize("wait", [-1, 31, "1e400", "5", True, None, "soon"])
def test_a_wait_out_of_bounds_is_refused(wait: Any, client: TestClient) -> None:
    body = {"prompt": "Hello.", "wait": wait}
    if wait is None:
        body["waits"] = 1
    problem(client.post(CHAT, json=body), 422, "INVALID_INPUT")


def test_a_client_that_goes_away_ends_the_wait_and_not_the_job(
    client: TestClient, stack: WorkerServices
) -> None:
    """As the server tells it: the body, then a disconnect while the job runs."""
    app: Any = client.app
    headers = [(b"content-type", b"application/json"), (b"host", b"testserver")]
    headers.append((b"authorization", client.headers["Authorization"].encode()))
    sent: list[Any] = []

    async def ask() -> None:
        body = json.dumps({"prompt": "Hello."}).encode()
        messages = [{"type": "http.request", "body": body}, {"type": "http.disconnect"}]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(),
            "query_string": b"", "headers": headers, "http_version": "1.1", "scheme": "http",
            "client": ("127.0.0.1", 1), "server": ("testserver", 80), "root_path": "",
        }  # fmt: skip
        await app(scope, receive, send)

    asyncio.run(asyncio.wait_for(ask(), 20))
    assert sent == []
    [job] = stack.jobs.get_many()
    execute(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.SUCCEEDED
