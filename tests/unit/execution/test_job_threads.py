"""Handlers in threads: they know of their message what a coroutine would know."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any, cast

from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.job_threads import JobThreads

MESSAGE: ContextVar[str] = ContextVar("message")


def test_a_thread_has_the_context_of_its_job() -> None:
    threads = JobThreads(2)

    async def run(name: str) -> Any:
        MESSAGE.set(name)
        handle = threads.run(lambda job: MESSAGE.get())
        return await handle(cast("JobContext", None))

    async def run_all() -> list[Any]:
        return await asyncio.gather(*(asyncio.create_task(run(name)) for name in "abc"))

    try:
        assert asyncio.run(run_all()) == ["a", "b", "c"]
    finally:
        threads.close()


def test_what_is_begun_is_not_waited_for() -> None:
    threads, may_end, ended = JobThreads(1), threading.Event(), threading.Event()

    def act() -> None:
        may_end.wait()
        ended.set()

    threads.begin(act)()
    assert not ended.is_set()
    may_end.set()
    threads.close()
    assert ended.is_set()
