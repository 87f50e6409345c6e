"""The jobs that this worker process runs now, and their provider calls."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from promptstack.repositories.jobs.records import Claim
from promptstack.services.llm.event_loop import EventLoop

T = TypeVar("T")
Started = TypeVar("Started", bound="Future[Any] | asyncio.Task[Any]")


class HandedBack(Exception):
    """A job that this worker stops, or has lost; it goes on elsewhere, if it goes on."""


class JobHandle:
    """One run of a job in this process, from before its claim until its end is stored.

    A job that is cancelled and retried at once has two handles for a moment.
    """

    def __init__(self, job_id: UUID, jobs: "ActiveJobs") -> None:
        self.job_id = job_id
        self.attempt: int | None = None
        """The claimed attempt; None before the claim."""
        self.is_cancelled = False
        """Whether this worker has cancelled the job's call, and not the provider's client."""
        self.call: Future[Any] | asyncio.Task[Any] | None = None
        """The last call, which may have ended."""
        self._jobs = jobs
        self._calls = 0
        self._deadline = math.inf

    def claimed(self, claim: Claim) -> None:
        """Note the claimed attempt, and when the job expires."""
        self.attempt = claim.attempt
        self._deadline = time.monotonic() + claim.seconds_left

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do a call's `work`, on the event loop. It is cancelled if this worker loses the job.

        Raises `HandedBack` then, and if this worker has stopped. If the provider's client cancels
        it, that is an `asyncio.CancelledError`.
        """
        call: asyncio.Task[T] = self._note(work, asyncio.create_task)
        try:
            return await call
        except asyncio.CancelledError:
            if self.is_cancelled:
                self.hand_back()
            raise

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a call from another thread than the event loop's, as `run` does."""
        return self._note(work, self._jobs.loop.submit)

    def _note(self, work: Coroutine[Any, Any, T], start: Callable[[Any], Started]) -> Started:
        if self._jobs.stopped.is_set():
            work.close()
            self.hand_back()
        call = start(work)
        self.call = call
        if self._jobs.stopped.is_set():
            self.cancel()  # `stop` may have looked before there was a call
        return call

    def cancel(self) -> bool:
        """Cancel the job's call. Returns whether one was running. Any thread may call this."""
        self.is_cancelled = True
        call = self.call
        if call is None or call.done():
            return False
        self._jobs.loop.call_soon(call.cancel)
        return True

    def hand_back(self) -> NoReturn:
        """Stop here, so that another worker goes on. Raises `HandedBack`."""
        self.is_cancelled = True
        raise HandedBack

    @property
    def is_closing(self) -> bool:
        """Whether this worker is about to stop, so that no call may begin."""
        return self._jobs.is_closing

    def check_may_begin(self) -> None:
        """Raise `HandedBack` if no call may begin any more."""
        if self._jobs.is_closing:
            self.hand_back()

    def pause(self, seconds: float) -> None:
        """Wait for other jobs, in a thread. Raises `HandedBack` when this worker stops."""
        if self._jobs.stopped.wait(seconds):
            self.hand_back()

    async def rest(self, seconds: float) -> None:
        """Wait for other jobs, on the event loop. Raises `HandedBack` after a stop."""
        await asyncio.sleep(seconds)
        if self._jobs.stopped.is_set():
            self.hand_back()

    def seconds_left(self) -> float:
        """The time until the job expires."""
        return self._deadline - time.monotonic()

    def next_call(self) -> int:
        """Number the calls of this attempt, from 0."""
        self._calls += 1
        return self._calls - 1


class ActiveJobs:
    """Knows the jobs of this process, and cancels their calls from other threads."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.stopped = threading.Event()
        self.is_closing = False
        """Whether no call may begin any more."""
        self._lock = threading.Lock()
        self._handles: set[JobHandle] = set()
        self._stopped_at: float | None = None

    @contextmanager
    def enter(self, job_id: UUID) -> Iterator[JobHandle]:
        """Register a job as active while the context lasts."""
        handle = JobHandle(job_id, self)
        with self._lock:
            self._handles.add(handle)
        try:
            yield handle
        finally:
            with self._lock:
                self._handles.discard(handle)

    def let_none_begin(self) -> None:
        """Let running calls end, and no other begin. A signal handler may call this.

        A call that began in the grace period would be cut off at its end, and the next worker
        would pay for it again.
        """
        self.is_closing = True

    def not_held(self, recorded: Mapping[UUID, int]) -> list[tuple[UUID, int]]:
        """Return the attempts of those recorded that this process neither runs nor may begin."""
        with self._lock:
            held = {(handle.job_id, handle.attempt) for handle in self._handles}
        return [one for one in recorded.items() if one not in held and (one[0], None) not in held]

    def claimed(self) -> list[JobHandle]:
        """The jobs that have made a call, so that their claim is surely in the ledger."""
        with self._lock:
            return [handle for handle in self._handles if handle.call is not None]

    def cancel_lost(self, claimed: list[JobHandle], recorded: Mapping[UUID, int]) -> list[UUID]:
        """Cancel the calls of jobs that the ledger no longer records as this worker's.

        Returns the ids of the jobs whose call was running.
        """
        lost = [handle for handle in claimed if recorded.get(handle.job_id) != handle.attempt]
        return [handle.job_id for handle in lost if handle.cancel()]

    def stop(self) -> None:
        """Cancel all calls and let none begin; the jobs go back to the queue."""
        self._stopped_at = time.monotonic()
        self.stopped.set()
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            handle.cancel()

    def seconds_since_stop(self) -> float:
        """How long ago `stop` was called, 0 if it wasn't."""
        stopped_at = self._stopped_at
        return 0.0 if stopped_at is None else time.monotonic() - stopped_at
