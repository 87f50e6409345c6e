"""Who waits for a job hears of its end at once, and not when its view is written."""

import asyncio

import pytest

from promptstack.services.events import hub
from promptstack.services.events.places import Look
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.integration.events.test_http_events import user
from tests.jobs import generate, run
from tests.processes import wait_until


def test_the_end_is_told_before_its_view_is_written(
    stack: WorkerServices, fake_llm: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seconds in ("SWEEP_SECONDS", "SWEEP_ALONE_SECONDS", "UNHEARD_SECONDS"):
        monkeypatch.setattr(hub, seconds, 3_600.0)
    stack.progress.write_behind(lambda: None)  # views are never written
    stack.keys.create("ada@example.org", "Test")
    ada = user(stack)
    job = generate(stack, user_id=ada)

    def is_heard() -> bool:
        return bool(stack.redis.pubsub_numsub(stack.events.jobs.channel(job.id))[0][1])

    async def wait() -> Look | None:
        with stack.events.watch(stack.events.jobs, job.id, ada, only_end=True) as watcher:
            await asyncio.to_thread(wait_until, is_heard, "the watcher", 30)
            doing = asyncio.ensure_future(asyncio.to_thread(run, stack, job))
            async with asyncio.timeout(30):
                async for _ in watcher:
                    pass
            await doing
            return watcher.end

    end = asyncio.run(wait())
    assert end is not None
    assert end.state == "succeeded"
