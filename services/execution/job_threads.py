"""Threads for the handlers that block, those of shards and finalizations, and for what follows."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from promptstack.services.execution.job_context import JobContext

Result = TypeVar("Result")


class JobThreads:
    """Runs such handlers beside the event loop, each job in a thread."""

    def __init__(self, most_jobs: int) -> None:
        """Take how many jobs a worker runs at once. A thread starts when a job needs it."""
        self._threads = ThreadPoolExecutor(most_jobs, "job")
        self._following = ThreadPoolExecutor(1, "after-job")

    def run(
        self, handle: Callable[[JobContext], Result]
    ) -> Callable[[JobContext], Awaitable[Result]]:
        """Make a blocking handler one for the event loop."""

        async def handle_in_thread(job: JobContext) -> Result:
            # With the coroutine's context, which knows the job's message.
            run = copy_context().run
            return await asyncio.get_running_loop().run_in_executor(self._threads, run, handle, job)

        return handle_in_thread

    def begin(self, action: Callable[[], None]) -> Callable[[], None]:
        """Make a blocking action one that is begun in a thread, and not waited for.

        Where it is asked for several times before it has begun, it is done once.
        """
        is_asked = threading.Event()

        def act() -> None:
            is_asked.clear()
            action()

        def begin_in_thread() -> None:
            if not is_asked.is_set():
                is_asked.set()
                self._following.submit(act)

        return begin_in_thread

    def close(self) -> None:
        """End the threads, once their jobs have ended."""
        self._threads.shutdown()
        self._following.shutdown()
