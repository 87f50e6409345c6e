"""`?wait=`: the answer when it has ended, or after the time; and what waiting costs."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from httpx2 import AsyncClient, Limits, Response

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.run_models import RunState
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.http import live_server, problem, serve
from tests.jobs import another, execute, sql
from tests.processes import wait_until
from tests.runs import work

API = "/api/v1"
GENERATION = {"prompt": "Hello.", "provider": "fake"}
EMBEDDING = {"text": "Hello.", "provider": "fake"}
ITEMS = {"items": ["Hello."], "provider": "fake"}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as opened:
        yield opened


@contextmanager
def asking(
    client: TestClient, method: str, path: str, body: Any = None
) -> Iterator[Future[Response]]:
    """The answer to come of a request in another thread."""
    with ThreadPoolExecutor(1) as threads:
        yield threads.submit(client.request, method, API + path, json=body)


def the_job(stack: WorkerServices) -> UUID:
    wait_until(stack.jobs.get_many, "the job")
    [job] = stack.jobs.get_many()
    return job.id


def the_run(stack: WorkerServices) -> UUID:
    """The run, once it is started: one that is still prepared has no work."""

    def started() -> list[UUID]:
        return [run.id for run in stack.runs.get_many() if run.state is RunState.RUNNING]

    wait_until(started, "the run")
    return started()[0]


def finish(stack: WorkerServices, run_id: UUID) -> None:
    """Work until it has ended: who started it may still be giving out its first shard."""
    wait_until(lambda: work(stack, run_id).state.is_final, "the end of the run")


@pytest.mark.parametrize(
    ("path", "body"),
    [("/generations", GENERATION), ("/embeddings", EMBEDDING)],
    ids=["generation", "embedding"],
)
def test_a_new_job_is_answered_with_its_end(
    client: TestClient, stack: WorkerServices, fake_llm: FakeProvider, path: str, body: Any
) -> None:
    with asking(client, "POST", f"{path}?wait=60", body) as asked:
        job_id = the_job(stack)
        execute(stack, job_id)
        answer = asked.result(60)
    assert (answer.status_code, answer.json()["state"]) == (200, "succeeded"), answer.text
    assert answer.headers["Location"] == f"{API}/jobs/{job_id}"
    assert answer.json() == client.get(answer.headers["Location"]).json()


@pytest.mark.parametrize("path", ["/runs/generations", "/runs/embeddings"])
def test_a_new_run_is_answered_with_its_end(
    client: TestClient, stack: WorkerServices, fake_llm: FakeProvider, path: str
) -> None:
    with asking(client, "POST", f"{path}?wait=60", ITEMS) as asked:
        run_id = the_run(stack)
        finish(stack, run_id)
        answer = asked.result(60)
    assert (answer.status_code, answer.json()["state"]) == (200, "completed"), answer.text
    assert answer.headers["Location"] == f"{API}/runs/{run_id}"
    assert answer.json() == client.get(answer.headers["Location"]).json()


def test_one_that_is_there_is_waited_for(
    client: TestClient, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = client.post(f"{API}/generations", json=GENERATION).json()
    run = client.post(f"{API}/runs/generations", json=ITEMS).json()
    with (
        asking(client, "GET", f"/jobs/{job['id']}?wait=60") as of_job,
        asking(client, "GET", f"/runs/{run['id']}?wait=60") as of_run,
    ):
        execute(stack, UUID(job["id"]))
        finish(stack, UUID(run["id"]))
        answers = [of_job.result(60), of_run.result(60)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert [answer.json()["state"] for answer in answers] == ["succeeded", "completed"]
    # It has ended: there is nothing to wait for.
    assert client.get(f"{API}/jobs/{job['id']}?wait=60").json() == answers[0].json()


def test_a_job_that_fails_is_an_answer_too(
    client: TestClient, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    with asking(client, "POST", "/generations?wait=60", GENERATION) as asked:
        stack.jobs.cancel(the_job(stack))
        answer = asked.result(60)
    assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")


@pytest.mark.parametrize("wait", ["", "?wait=0", "?wait=0.2"])
def test_after_the_time_it_goes_on(client: TestClient, stack: WorkerServices, wait: str) -> None:
    made = client.post(f"{API}/generations{wait}", json={"prompt": "Hello."})
    assert (made.status_code, made.json()["state"]) == (202, "queued")
    assert made.headers["Location"] == f"{API}/jobs/{made.json()['id']}"
    assert made.headers["Retry-After"] == "1"
    seen = client.get(f"{API}/jobs/{made.json()['id']}{wait}")
    assert (seen.status_code, seen.json()) == (200, made.json() | {"waits": seen.json()["waits"]})
    run = client.post(f"{API}/runs/embeddings{wait}", json={"items": ["x"], "provider": "local"})
    assert (run.status_code, run.json()["state"]) == (202, "running")
    assert client.get(f"{API}/runs/{run.json()['id']}{wait}").json()["state"] == "running"


def test_a_request_sent_again_is_answered_with_the_end(
    client: TestClient, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    def ask(wait: str = "") -> Response:
        headers = {"Idempotency-Key": "once"}
        return client.post(f"{API}/generations{wait}", json=GENERATION, headers=headers)

    first = ask()
    execute(stack, UUID(first.json()["id"]))
    again = ask("?wait=1")
    assert (again.status_code, again.json()["state"]) == (200, "succeeded")
    # Who doesn't wait is told what it was told before.
    assert ask().status_code == 202


@pytest.mark.parametrize("wait", ["-1", "61", "1e400", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("route", ["GET /jobs", "GET /runs", "POST /generations"])
def test_a_wait_out_of_bounds_is_refused(
    client: TestClient, stack: WorkerServices, wait: str, route: str
) -> None:
    method, path = route.split()
    if method == "GET":
        path += "/00000000-0000-0000-0000-000000000001"
    body = GENERATION if method == "POST" else None
    answer = client.request(method, f"{API}{path}?wait={wait}", json=body)
    problem(answer, 422, "INVALID_INPUT")
    assert stack.jobs.get_many() == []


def test_where_too_many_wait_the_answer_is_that_it_goes_on(stack: WorkerServices) -> None:
    with another(stack, max_watchers=0) as serving, serve(serving) as client:
        began = time.monotonic()
        made = client.post(f"{API}/generations?wait=50", json={"prompt": "Hello."})
        assert (made.status_code, made.json()["state"]) == (202, "queued")
        assert client.get(f"{API}/jobs/{made.json()['id']}?wait=50").json()["state"] == "queued"
        assert time.monotonic() - began < 25


def test_a_ledger_that_goes_away_meanwhile_costs_the_news_and_not_the_job(
    client: TestClient, stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: UUID) -> JobView:
        raise LedgerUnavailable("The database is away.")

    monkeypatch.setattr(stack.jobs, "get", away)
    answer = client.post(f"{API}/generations?wait=0.1", json={"prompt": "Hello."})
    assert (answer.status_code, answer.json()["state"]) == (202, "queued")


WAITERS = 500


def test_500_who_wait_hold_no_thread(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Ada")
    user_id = stack.keys.authenticate(key).user_id
    jobs = stack.jobs.enqueue_many([{"prompt": "Hello.", "user_id": user_id}] * WAITERS)
    bounds = {"max_watchers": WAITERS, "max_watchers_of_user": WAITERS, "max_connections": 2_000}

    async def scene(url: str) -> list[Response]:
        async with AsyncClient(
            base_url=url + API,
            headers={"Authorization": f"Bearer {key}"},
            limits=Limits(max_connections=WAITERS + 10),
            timeout=120,
        ) as http:
            # First a few, one after the other: what makes threads has made them.
            for job in jobs[:10]:
                await http.get(f"/jobs/{job.id}?wait=0.01")
            waiting = [asyncio.create_task(http.get(f"/jobs/{job.id}?wait=60")) for job in jobs]
            while serving.events.watchers < WAITERS:  # noqa: ASYNC110 - made true by a thread
                await asyncio.sleep(0.05)
            pool = serving.settings.database_pool_size + serving.settings.database_max_overflow
            assert threading.active_count() < before + pool + 10
            others = await asyncio.gather(*(http.get(f"/jobs/{job.id}") for job in jobs[:10]))
            assert {answer.json()["state"] for answer in others} == {"queued"}
            assert serving.events.watchers == WAITERS
            await asyncio.to_thread(cancel_all)
            return list(await asyncio.gather(*waiting))

    def cancel_all() -> None:
        sql(stack, "UPDATE jobs SET state = 'cancelled', finished_at = now()")
        stack.progress.rebuild([job.id for job in jobs])

    with another(stack, **bounds) as serving, live_server(serving) as (_, url):
        before = threading.active_count()
        answers = asyncio.run(scene(url))
    assert {answer.json()["state"] for answer in answers} == {"cancelled"}
    assert [answer.json()["id"] for answer in answers] == [str(job.id) for job in jobs]
