"""What waits for others, such as a provider, holds up no other request with a large body."""

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import Any, BinaryIO
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response

from promptstack.api.http.search import SEARCHES_AT_ONCE, SEARCHES_OF_USER
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.http import serve
from tests.jobs import execute
from tests.processes import wait_until

PREFIX = "/api/v1"
JSON = "application/json"
SECONDS = 60
LARGE_BULK = {"jobs": [{"prompt": "x" * 50_000}]}


def chunked(client: TestClient, path: str, body: dict[str, Any]) -> Response:
    """Send a body without its length, which counts as a large one."""
    parts = iter([json.dumps(body).encode()])
    return client.post(f"{PREFIX}{path}", content=parts, headers={"Content-Type": JSON})


@pytest.fixture
def client(stack: WorkerServices, fake_llm: FakeProvider) -> Iterator[TestClient]:
    """A user with a document."""
    with serve(stack) as opened:
        url = f"{PREFIX}/collections/default/documents"
        put = opened.put(url, json={"text": "The owl.", "source": "a", "provider": "fake"})
        execute(stack, UUID(put.json()["job"]["id"]))
        yield opened


@contextmanager
def hanging(fake_llm: FakeProvider) -> Iterator[list[int]]:
    """Let no call of the provider end within; the list has an entry for each that has begun."""
    calls: list[int] = []
    may_end = Event()

    async def hang() -> None:
        calls.append(1)
        await asyncio.to_thread(may_end.wait)

    fake_llm.on_call = hang
    try:
        yield calls
    finally:
        may_end.set()


def search(client: TestClient, query: str) -> Response:
    return chunked(client, "/search", {"provider": "fake", "query": query})


def test_a_large_search_that_waits_holds_up_no_other_large_body(
    client: TestClient, fake_llm: FakeProvider
) -> None:
    with ThreadPoolExecutor(2) as threads:
        with hanging(fake_llm) as calls:
            searching = threads.submit(search, client, "slow")
            wait_until(lambda: calls, "the provider to be asked")
            bulk = threads.submit(client.post, f"{PREFIX}/jobs/bulk", json=LARGE_BULK)
            assert bulk.result(SECONDS).status_code == 202
            assert not searching.done()
        found = searching.result(SECONDS)
    assert [one["text"] for one in found.json()["matches"]] == ["The owl."]


def test_searches_of_one_user_hold_up_no_other_user(
    stack: WorkerServices, client: TestClient, fake_llm: FakeProvider
) -> None:
    other = {"Authorization": f"Bearer {stack.keys.create('eve@example.org', 'Test')}"}
    with ThreadPoolExecutor(2 * SEARCHES_AT_ONCE) as threads:
        with hanging(fake_llm) as calls:
            slow = [
                threads.submit(search, client, f"slow {n}") for n in range(SEARCHES_AT_ONCE + 2)
            ]
            wait_until(lambda: len(calls) >= SEARCHES_OF_USER, "the provider to be asked")
            body = {"provider": "fake", "vector": [1.0, 0.0, 0.0]}
            asked = threads.submit(client.post, f"{PREFIX}/search", json=body, headers=other)
            assert asked.result(SECONDS).status_code in {200, 422}, "at once, whatever it finds"
            assert len(calls) == SEARCHES_OF_USER
        assert {one.result(SECONDS).status_code for one in slow} == {200}


def test_searches_with_large_bodies_take_their_turn_among_the_others(
    client: TestClient, fake_llm: FakeProvider
) -> None:
    with ThreadPoolExecutor(4 * SEARCHES_AT_ONCE) as threads:

        def ask(name: str, send: Callable[[str], Response], times: int) -> list[Future[Response]]:
            return [threads.submit(send, f"{name} {n}") for n in range(times)]

        def small(query: str) -> Response:
            return client.post(f"{PREFIX}/search", json={"provider": "fake", "query": query})

        with hanging(fake_llm) as calls:
            asked = ask("first", small, SEARCHES_AT_ONCE)
            wait_until(lambda: len(calls) == SEARCHES_OF_USER, "as many searches as run at once")
            asked += ask("large", lambda query: search(client, query), 2)
            asked += ask("then", small, 2)
            bulk = threads.submit(client.post, f"{PREFIX}/jobs/bulk", json=LARGE_BULK)
            assert bulk.result(SECONDS).status_code == 202
            assert len(calls) == SEARCHES_OF_USER
        assert {one.result(SECONDS).status_code for one in asked} == {200}


def test_a_run_that_reads_an_object_holds_up_no_large_body(
    stack: WorkerServices, client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    is_reading, may_end = Event(), Event()
    items = tmp_path / "items.jsonl"
    items.write_text('{"text": "One."}\n')

    @contextmanager
    def reading(_: object) -> Iterator[BinaryIO]:
        is_reading.set()
        may_end.wait(SECONDS)
        with items.open("rb") as file:
            yield file

    storage = stack.object_storage
    monkeypatch.setattr(storage, "check", lambda url, _: url)
    monkeypatch.setattr(storage, "reading", reading)
    body = {"provider": "fake", "source_url": "s3://bucket/items.jsonl", "format": "jsonl"}
    with ThreadPoolExecutor(2) as threads:
        try:
            started = threads.submit(chunked, client, "/runs/embeddings", body)
            assert is_reading.wait(SECONDS)
            bulk = threads.submit(client.post, f"{PREFIX}/jobs/bulk", json=LARGE_BULK)
            assert bulk.result(SECONDS).status_code == 202
            assert not started.done()
        finally:
            may_end.set()
        run = started.result(SECONDS)
    assert run.status_code == 202, run.text
    assert run.json()["total"] == 1
