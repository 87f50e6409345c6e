"""GET /overview: counts and providers, asked once for many who look."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from promptstack.repositories.jobs.jobs import JobRepository
from promptstack.services.llm.answers import Examined
from promptstack.services.llm.demo import DemoService
from promptstack.services.overview import Overview
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve


def test_many_who_look_ask_once(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    examined: list[int] = []
    count_open = JobRepository.count_open

    def count(self: JobRepository) -> dict[str, int]:
        counted.append(1)
        return count_open(self)

    async def examine(_: Any) -> Examined:
        examined.append(1)
        return Examined(True)

    monkeypatch.setattr(JobRepository, "count_open", count)
    monkeypatch.setattr(DemoService, "examine", examine)
    stack.jobs.enqueue_many([{"prompt": "Hello."}] * 3)
    with serve(stack, is_admin=True) as client:
        _ = stack.overview
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: client.get("/api/v1/overview"), range(8)))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert (answer.json()["jobs"], answer.json()["workers"]) == ({"queued": 3}, 0)
        found = {one["name"]: one for one in answer.json()["providers"]}
        assert found["demo"]["answers"] is True
        assert found["openai"] == {"name": "openai", "answers": None, "reason": "It has no key."}
        assert answer.json()["providers_asked_seconds_ago"] < 30
    assert len(examined) == 1
    assert len(counted) < len(answers)


def test_a_provider_that_hangs_or_breaks_is_said_to(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_: Any) -> Examined:
        await asyncio.sleep(60)
        return Examined(True)

    monkeypatch.setattr(DemoService, "examine", hang)
    monkeypatch.setattr("promptstack.services.overview.PATIENCE_SECONDS", 0.1)
    [demo] = [one for one in asyncio.run(stack.overview.providers()).value if one.name == "demo"]
    assert (demo.answers, demo.reason) == (False, "No answer within 0.1 s.")


def test_an_overview_is_for_administrators(stack: WorkerServices) -> None:
    with serve(stack) as client:
        problem(client.get("/api/v1/overview"), 403, "NOT_PERMITTED")


def test_two_processes_share_what_was_seen(stack: WorkerServices) -> None:
    other = Overview(
        stack.ledger, stack.cache, stack.factory, stack.providers, stack.loop,
        worker_lost_seconds=1,
    )  # fmt: skip
    stack.jobs.enqueue_generation("Hello.")
    first = asyncio.run(stack.overview.counts()).value
    stack.jobs.enqueue_generation("Hello.")
    assert asyncio.run(other.counts()).value == first
