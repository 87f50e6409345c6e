"""Events over HTTP: states, progress and the end, how a reader goes on, and who may not."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from httpx2 import Client

from promptstack.api.http.still_allowed import StillAllowed
from promptstack.tasks.worker_services import WorkerServices
from promptstack_client import Client as PromptStackClient
from tests.events import Sent, read_events
from tests.fakes import FakeProvider
from tests.http import live_server, make_admin_key, problem
from tests.jobs import NO_REDIS, another, claimed, execute, generate, sql
from tests.processes import wait_until
from tests.runs import prompts, work

NOWHERE = UUID(int=1)


class Reader:
    """A client of the server of a stack, as a user."""

    def __init__(self, url: str, key: str) -> None:
        self.http = Client(
            base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30
        )
        self._open = ExitStack()
        self._read: list[Iterator[Sent]] = []

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(path, headers=headers)

    def events(self, path: str, **headers: str) -> Iterator[Sent]:
        """What is sent, as it is read."""
        answer = self._open.enter_context(self.http.stream("GET", path, headers=headers))
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        # Kept: a connection is closed when nobody reads it any more.
        self._read.append(read_events(answer.iter_lines()))
        return self._read[-1]

    def close(self) -> None:
        self._open.close()
        self.http.close()


@pytest.fixture
def served(settings_of_server: dict[str, Any], stack: WorkerServices) -> Iterator[WorkerServices]:
    """The stack of the server, which may have settings of its own."""
    with another(stack, **settings_of_server) as serving:
        yield serving


@pytest.fixture
def settings_of_server(request: pytest.FixtureRequest) -> dict[str, Any]:
    return getattr(request, "param", {})


@pytest.fixture
def ada(served: WorkerServices, stack: WorkerServices) -> Iterator[Reader]:
    with live_server(served) as (_, url):
        reader = Reader(url, stack.keys.create("ada@example.org", "Ada"))
        yield reader
        reader.close()


def user(stack: WorkerServices, email: str = "ada@example.org") -> UUID:
    with stack.ledger.transaction() as unit:
        found = unit.users.get_by_email(email)
        assert found is not None
        return found.id


def with_settings(**changes: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("settings_of_server", [changes], indirect=True, ids=["set"])


def test_a_job_is_watched_to_its_end(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack, user_id=user(stack))
    events = ada.events(f"/jobs/{job.id}/events")
    first = next(events)
    assert first.kind == "state"
    assert first.data == {
        "id": str(job.id), "state": "queued", "current": 0, "total": 1, "attempt": 0,
        "error_code": None, "error": None,
        "waits": ada.get(f"/jobs/{job.id}").json()["waits"],
    }  # fmt: skip
    assert first.data["waits"]["reason"]
    claim = claimed(stack, job)
    stack.progress.rebuild([job.id])
    second = next(events)
    assert (second.data["state"], second.data["attempt"]) == ("running", claim.attempt)
    stack.jobs.cancel(job.id)
    *_, last = events
    assert (last.kind, last.data["state"]) == ("end", "cancelled")
    assert last.data == ada.get(f"/jobs/{job.id}").json()


def test_a_change_is_heard_of_at_once(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    waits = []
    for _ in range(5):
        job = generate(stack, user_id=user(stack))
        events = ada.events(f"/jobs/{job.id}/events")
        next(events)
        began = time.monotonic()
        execute(stack, job.id)
        done = time.monotonic()
        assert list(events)[-1].data["state"] == "succeeded"
        waits.append(time.monotonic() - max(began, done))
    assert sorted(waits)[2] < 0.5, waits


def test_who_lost_the_connection_goes_on_where_they_were(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack, user_id=user(stack))
    path = f"/jobs/{job.id}/events"
    first = next(ada.events(path))
    again = ada.events(path, **{"Last-Event-ID": first.id})
    execute(stack, job.id)
    rest = list(again)
    assert first not in rest
    assert [one.kind for one in rest][-1] == "end"
    by_query = list(ada.events(f"{path}?since={first.id}"))
    assert by_query == rest[-1:]
    ended = ada.get(path, **{"Last-Event-ID": rest[-1].id})
    assert (ended.status_code, ended.content) == (204, b"")
    assert ada.get(f"{path}?since={rest[-1].id}").status_code == 204
    # The header is of now, and the query of when the page was opened.
    both = ada.get(f"{path}?since={first.id}", **{"Last-Event-ID": rest[-1].id})
    assert both.status_code == 204


def test_a_second_life_of_a_job_is_watched_anew(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack, user_id=user(stack))
    stack.jobs.cancel(job.id)
    [end] = ada.events(f"/jobs/{job.id}/events")
    stack.jobs.retry(job.id)
    events = ada.events(f"/jobs/{job.id}/events", **{"Last-Event-ID": end.id})
    assert next(events).data["state"] == "queued"
    execute(stack, job.id)
    assert list(events)[-1].data["state"] == "succeeded"


def test_a_run_is_watched_to_its_end(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    run = stack.runs.generate(prompts(3), provider="fake", user_id=user(stack))
    events = ada.events(f"/runs/{run.id}/events")
    first = next(events)
    assert first.kind == "progress"
    assert first.data == {
        "id": str(run.id), "state": "running", "total": 3, "succeeded": 0, "failed": 0,
        "reused": 0, "cost_usd": 0.0, "eta_seconds": None, "items_per_second": None,
    }  # fmt: skip
    work(stack, run.id)
    *_, last = events
    assert (last.kind, last.data["state"], last.data["succeeded"]) == ("end", "completed", 3)
    assert last.data == ada.get(f"/runs/{run.id}").json()
    assert ada.get(f"/runs/{run.id}/events", **{"Last-Event-ID": last.id}).status_code == 204


@with_settings(redis_url=NO_REDIS)
def test_without_redis_the_ledger_tells(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack, user_id=user(stack))
    run = stack.runs.generate(prompts(2), provider="fake", user_id=user(stack))
    of_job, of_run = (ada.events(f"/{one}/events") for one in (f"jobs/{job.id}", f"runs/{run.id}"))
    assert next(of_job).data["state"] == "queued"
    assert next(of_run).data["state"] == "running"
    execute(stack, job.id)
    work(stack, run.id)
    assert list(of_job)[-1].data["state"] == "succeeded"
    assert list(of_run)[-1].data["state"] == "completed"


def test_what_redis_was_never_told_is_found_in_the_ledger(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    job = generate(stack, user_id=user(stack))
    events = ada.events(f"/jobs/{job.id}/events")
    next(events)
    with another(stack, redis_url=NO_REDIS) as cut_off:
        cut_off.jobs.cancel(job.id)
    assert list(events)[-1].data["state"] == "cancelled"


@with_settings(events_heartbeat_seconds=0.1)
def test_a_stream_without_events_says_that_it_is_there(ada: Reader, stack: WorkerServices) -> None:
    job = stack.jobs.enqueue_generation("Hello.", user_id=user(stack))
    events = ada.events(f"/jobs/{job.id}/events")
    seen = [next(events) for _ in range(5)]
    assert [one.kind for one in seen if one.kind] == ["state"]
    assert [one.comment for one in seen if not one.kind] == ["heartbeat"] * 4


def test_others_jobs_and_runs_are_unknown(ada: Reader, stack: WorkerServices) -> None:
    eve = stack.users.create("eve@example.org").id
    job = stack.jobs.enqueue_generation("Hello.", user_id=eve)
    run = stack.runs.generate(prompts(1), provider="demo", user_id=eve)
    for path in (f"/jobs/{job.id}", f"/runs/{run.id}", f"/jobs/{NOWHERE}", f"/runs/{NOWHERE}"):
        problem(ada.get(f"{path}/events"), 404, "NOT_FOUND")


@pytest.mark.parametrize("given", ["x", "1.2.3.4", "-.0.0.0-", "0" * 5_000])
def test_an_id_that_is_none_of_ours_is_refused(
    ada: Reader, stack: WorkerServices, given: str
) -> None:
    job = stack.jobs.enqueue_generation("Hello.", user_id=user(stack))
    path = f"/jobs/{job.id}/events"
    problem(ada.get(path, **{"Last-Event-ID": given}), 422, "INVALID_INPUT")
    problem(ada.get(f"{path}?since={given}"), 422, "INVALID_INPUT")


@with_settings(max_watchers=3, max_watchers_of_user=2)
def test_so_many_watch_and_no_more(ada: Reader, stack: WorkerServices) -> None:
    job = stack.jobs.enqueue_generation("Hello.", user_id=user(stack))
    path = f"/jobs/{job.id}/events"
    for _ in range(2):
        next(ada.events(path))
    refused = ada.get(path)
    problem(refused, 429, "TOO_MANY_WATCHERS")
    assert int(refused.headers["Retry-After"]) > 0
    url = str(ada.http.base_url).removesuffix("/api/v1/")
    bob = Reader(url, make_admin_key(stack, "bob@example.org"))
    next(bob.events(path))
    refused = bob.get(path)
    problem(refused, 503, "WATCHERS_FULL")
    assert int(refused.headers["Retry-After"]) > 0
    ada.close()
    bob.close()


@with_settings(max_watchers_of_user=1)
def test_a_client_that_is_one_too_many_comes_in_when_there_is_room(
    ada: Reader, stack: WorkerServices, fake_llm: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours; another one finds in `Retry-After` when to ask again."""
    monkeypatch.setattr("promptstack.services.events.room.FULL_RETRY_SECONDS", 0.1)
    first, second = (generate(stack, name, user_id=user(stack)) for name in "ab")
    events = ada.events(f"/jobs/{first.id}/events")
    next(events)
    answers: list[int] = []
    hooks = {"response": [lambda answer: answers.append(answer.status_code)]}
    key = ada.http.headers["Authorization"].removeprefix("Bearer ")
    seen: list[str] = []
    with (
        Client(event_hooks=hooks) as http,
        PromptStackClient(str(ada.http.base_url), key, max_retries=60, http=http) as client,
        ThreadPoolExecutor(1) as threads,
    ):
        reading = threads.submit(lambda: seen.extend(e.name for e in client.jobs.events(second.id)))
        wait_until(lambda: 429 in answers, "the client to be refused")
        assert seen == []
        for job in (first, second):
            execute(stack, job.id)
        assert [event.kind for event in events][-1] == "end"
        reading.result(60)
    assert seen[-1] == "end"
    assert set(answers) == {429, 200}


LOSSES = {
    "revoked key": "UPDATE api_keys SET revoked_at = now()",
    "disabled user": "UPDATE users SET disabled_at = now() WHERE email = 'ada@example.org'",
    "role taken": "UPDATE users SET role = 'user' WHERE email = 'ada@example.org'",
}


@pytest.mark.parametrize("loss", LOSSES)
def test_who_may_no_longer_watch_is_shown_no_more(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr("promptstack.api.http.app.StillAllowed", partial(StillAllowed, 0.1))
    stack.users.create("eve@example.org")
    key = make_admin_key(stack, "ada@example.org")
    job = stack.jobs.enqueue_generation("Hello.", user_id=user(stack, "eve@example.org"))
    with another(stack, events_heartbeat_seconds=0.1) as serving, live_server(serving) as (_, url):
        reader = Reader(url, key)
        events = reader.events(f"/jobs/{job.id}/events")
        seen = [next(events) for _ in range(10)]
        assert {one.kind for one in seen} == {"state", ""}
        sql(stack, LOSSES[loss])
        assert {one.comment for one in events} <= {"heartbeat"}
        reader.close()


def test_a_server_that_stops_ends_its_streams_at_once(
    served: WorkerServices, stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    key = stack.keys.create("ada@example.org", "Ada")
    job = generate(stack, user_id=user(stack))
    path = f"/jobs/{job.id}/events"
    with live_server(served) as (_, url):
        reader = Reader(url, key)
        events = reader.events(path)
        first = next(events)
        began = time.monotonic()
    stopped = time.monotonic() - began
    assert list(events) == []  # it ends in order, and not in the middle
    assert stopped < served.settings.shutdown_grace_seconds / 2
    reader.close()
    execute(stack, job.id)
    with another(stack) as next_process, live_server(next_process) as (_, url):
        reader = Reader(url, key)
        rest = list(reader.events(path, **{"Last-Event-ID": first.id}))
        assert [one.kind for one in rest] == ["end"]
        reader.close()
