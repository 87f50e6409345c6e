"""GET /usage is cached for some seconds, says so, and never hides a call from who asks anew."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from promptstack.repositories.usage import Usage, UsageRepository
from promptstack.services.cache.stampede import Call
from promptstack.tasks.connections import open_redis
from promptstack.tasks.worker_services import WorkerServices
from tests.http import serve
from tests.jobs import execute
from tests.processes import wait_until

EMAIL = "ada@example.org"
THREADS = 40
"""Of an API process, for all its routes."""


@pytest.fixture
def count_sums(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the ledger was asked for sums."""
    asked: list[int] = []
    sums = UsageRepository.sums

    def count(self: UsageRepository, *arguments: Any, **named: Any) -> list[Usage]:
        asked.append(1)
        return sums(self, *arguments, **named)

    monkeypatch.setattr(UsageRepository, "sums", count)
    return lambda: len(asked)


def generate(stack: WorkerServices) -> None:
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(EMAIL)
    execute(stack, stack.jobs.enqueue_generation("Hello.", user_id=user.id if user else None).id)


def test_sums_are_asked_once_in_a_while_and_say_their_age(
    stack: WorkerServices, count_sums: Callable[[], int]
) -> None:
    with serve(stack, EMAIL) as client:
        generate(stack)
        first = client.get("/api/v1/usage", params={"by": "model"})
        generate(stack)
        again = client.get("/api/v1/usage", params={"by": "model"})
        assert count_sums() == 1
        assert again.json() == first.json()
        assert first.headers["Age"] == "0"
        assert 0 < int(again.headers["Age"]) <= 2 * stack.settings.usage_cache_seconds
        # Another question, and who asks for what is true now, are answered from the ledger.
        assert client.get("/api/v1/usage", params={"by": "day"}).json()[0]["calls"] == 2
        fresh = client.get(
            "/api/v1/usage", params={"by": "model"}, headers={"Cache-Control": "no-cache"}
        )
        assert (fresh.json()[0]["calls"], fresh.headers["Age"]) == (2, "0")
        assert client.get("/api/v1/usage", params={"by": "model"}).json() == fresh.json()


def test_who_waits_for_sums_leaves_the_threads_to_others(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    go_on = threading.Event()
    look, sums = Call.look, UsageRepository.sums

    def noted(call: Call) -> Any:
        looks.append(1)
        return look(call)

    def held(self: UsageRepository, *arguments: Any, **named: Any) -> list[Usage]:
        assert go_on.wait(30)
        return sums(self, *arguments, **named)

    monkeypatch.setattr(Call, "look", noted)
    monkeypatch.setattr(UsageRepository, "sums", held)
    with serve(stack, EMAIL) as client, ThreadPoolExecutor(THREADS + 5) as callers:
        asked = [callers.submit(client.get, "/api/v1/usage") for _ in range(THREADS + 5)]
        try:
            wait_until(lambda: len(looks) >= THREADS, "all to wait for one sum")
            assert client.get("/api/v1/jobs").status_code == 200
            assert not any(one.done() for one in asked)
        finally:
            go_on.set()
        assert {one.result(30).status_code for one in asked} == {200}


def test_python_and_the_command_line_ask_the_ledger(stack: WorkerServices) -> None:
    for calls in (1, 2, 3):
        generate(stack)
        assert stack.usage.sums([])[0].calls == calls


def test_one_users_sums_are_never_anothers(stack: WorkerServices) -> None:
    with serve(stack, EMAIL) as ada, serve(stack, "bob@example.org") as bob:
        generate(stack)
        assert len(ada.get("/api/v1/usage").json()) == 1
        assert bob.get("/api/v1/usage").json() == []


def test_sums_are_answered_while_redis_is_away(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(stack, EMAIL) as client, open_redis("redis://127.0.0.1:1/0") as away:
        monkeypatch.setattr(stack.cache, "_redis", away)
        for calls in (1, 2):
            generate(stack)
            answer = client.get("/api/v1/usage", params={"by": "model"})
            assert (answer.json()[0]["calls"], answer.headers["Age"]) == (calls, "0")


def test_nothing_is_cached_where_the_setting_says_so(
    stack: WorkerServices, count_sums: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.settings, "usage_cache_seconds", 0)
    with serve(stack, EMAIL) as client:
        for _ in range(2):
            assert client.get("/api/v1/usage").headers["Age"] == "0"
    assert count_sums() == 2
    assert not list(stack.redis.scan_iter("promptstack:cache:*"))
