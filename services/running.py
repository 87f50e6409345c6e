"""The jobs that this worker process has in hand now, and the provider calls they wait for."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

from services.llm.event_loop import EventLoop

T = TypeVar("T")


class RunningJobs:
    """Lets a job's call be cancelled from another thread."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._calls: dict[UUID, Future[Any] | None] = {}
        self._stopping = False

    @contextmanager
    def in_hand(self, job_id: UUID) -> Iterator[bool]:
        """Hold a job from before its claim to after its last word in the ledger.

        Gives False where this process holds it already: its message came twice.
        """
        with self._lock:
            is_new = job_id not in self._calls
            self._calls.setdefault(job_id, None)
        try:
            yield is_new
        finally:
            if is_new:
                with self._lock:
                    self._calls.pop(job_id, None)

    def wait_for(self, job_id: UUID, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run a call on the event loop and wait for it.

        Raises `TimeoutError`, `concurrent.futures.CancelledError`, and what the call raises.
        """
        with self._lock:
            if self._stopping:
                coroutine.close()
                raise CancelledError
            call = self._loop.submit(asyncio.wait_for(coroutine, timeout))
            self._calls[job_id] = call
        return call.result()

    def ids(self) -> set[UUID]:
        """The jobs in hand."""
        with self._lock:
            return set(self._calls)

    def waiting(self) -> set[UUID]:
        """Those of them that have waited for a call: their claim is surely in the ledger."""
        with self._lock:
            return {job_id for job_id, call in self._calls.items() if call is not None}

    def cancel(self, job_id: UUID) -> None:
        """Cancel the job's call, if it waits for one."""
        with self._lock:
            call = self._calls.get(job_id)
        if call is not None:
            call.cancel()

    def stop(self) -> None:
        """Cancel all calls and let none begin: the jobs are handed back."""
        with self._lock:
            self._stopping = True
            calls = [call for call in self._calls.values() if call is not None]
        for call in calls:
            call.cancel()
