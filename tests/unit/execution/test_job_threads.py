"""Handlers in threads: they know of their message what a coroutine would know."""

import asyncio
import threading
from contextvars import ContextVar
from typing import Any, cast

from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.job_threads import JobThreads
from tests.processes import PATIENCE

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


def test_what_is_begun_is_not_waited_for_and_is_done_once_for_many() -> None:
    threads, begun, may_end = JobThreads(1), threading.Event(), threading.Event()
    done = []

    def act() -> None:
        begun.set()
        assert may_end.wait(PATIENCE)
        done.append(1)

    begin = threads.begin(act)
    begin()
    assert begun.wait(timeout=30)
    for _ in range(5):
        begin()
    assert not done
    may_end.set()
    threads.close()
    # Once more: what was asked for after it had begun, it may not have seen.
    assert len(done) == 2
