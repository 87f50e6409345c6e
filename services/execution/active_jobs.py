"""The jobs that this worker process does now, and the provider calls that they wait for."""

import math
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar
from uuid import UUID

from promptstack.repositories.jobs.records import Claim
from promptstack.services.llm.event_loop import EventLoop

T = TypeVar("T")


class JobHandle:
    """One message's hold on a job, from before its claim to its last word in the ledger.

    A job has two handles for a moment where it was cancelled, and retried before the first ended.
    """

    def __init__(self, job_id: UUID, jobs: "ActiveJobs") -> None:
        self.job_id = job_id
        self.attempt: int | None = None
        """The attempt that was claimed; None while that isn't known yet."""
        self.is_cancelled = False
        """Whether we cancelled its call, and not the provider itself."""
        self.call: Future[Any] | None = None
        """Its last call, which may have ended."""
        self._jobs = jobs
        self._calls = 0
        self._deadline = math.inf

    def claimed(self, claim: Claim) -> None:
        """Note what was claimed, and when the job expires."""
        self.attempt = claim.attempt
        self._deadline = time.monotonic() + claim.seconds_left

    def begin(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a call on the event loop; it is cancelled where the job is taken from us.

        Raises `concurrent.futures.CancelledError` where this worker has stopped.
        """
        if self._jobs.stopped.is_set():
            coroutine.close()
            self.hand_back()
        call = self._jobs.loop.submit(coroutine)
        self.call = call
        if self._jobs.stopped.is_set():
            self.cancel()  # stopped just now, perhaps before the job had a call
        return call

    def cancel(self) -> bool:
        """Cancel the job's call; whether there was one to cancel."""
        self.is_cancelled = True
        return self.call is not None and self.call.cancel()

    def hand_back(self) -> NoReturn:
        """Stop here, for another worker to go on. Raises `CancelledError`."""
        self.is_cancelled = True
        raise CancelledError

    @property
    def is_closing(self) -> bool:
        """Whether no call may begin any more, as this worker is about to stop."""
        return self._jobs.is_closing

    def check_may_begin(self) -> None:
        """Raise `CancelledError` where no call may begin any more."""
        if self._jobs.is_closing:
            self.hand_back()

    def pause(self, seconds: float) -> None:
        """Wait for something that others do. Raises `CancelledError` when this worker stops."""
        if self._jobs.stopped.wait(seconds):
            self.hand_back()

    def seconds_left(self) -> float:
        """Time until the job expires."""
        return self._deadline - time.monotonic()

    def next_call(self) -> int:
        """Number the calls of this attempt, from 0."""
        self._calls += 1
        return self._calls - 1


class ActiveJobs:
    """Knows which jobs are here, and cancels their calls from other threads."""

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
        """Count a job among the active ones as long as this lasts."""
        handle = JobHandle(job_id, self)
        with self._lock:
            self._handles.add(handle)
        try:
            yield handle
        finally:
            with self._lock:
                self._handles.discard(handle)

    def let_none_begin(self) -> None:
        """Let running calls end, and no other begin; a signal's handler may call it.

        A call that began within the grace of a shutdown would be cut off at its end, and paid
        again by the next worker.
        """
        self.is_closing = True

    def holds(self, job_id: UUID, attempt: int) -> bool:
        """Whether this process does that attempt, or may be about to."""
        with self._lock:
            return any(
                handle.job_id == job_id and handle.attempt in (None, attempt)
                for handle in self._handles
            )

    def claimed(self) -> list[JobHandle]:
        """The jobs whose claim is surely in the ledger, as they have made a call."""
        with self._lock:
            return [handle for handle in self._handles if handle.call is not None]

    def cancel_lost(self, claimed: list[JobHandle], recorded: Mapping[UUID, int]) -> list[UUID]:
        """Cancel the calls of those jobs that the ledger no longer records as ours."""
        lost = [handle for handle in claimed if recorded.get(handle.job_id) != handle.attempt]
        # A call that ended meanwhile was not lost.
        return [handle.job_id for handle in lost if handle.cancel()]

    def stop(self) -> None:
        """Cancel all calls and let none begin: the jobs are handed back."""
        self._stopped_at = time.monotonic()
        self.stopped.set()
        with self._lock:
            handles = list(self._handles)
        for handle in handles:
            handle.cancel()

    def seconds_since_stop(self) -> float:
        """How long ago all was stopped, 0 if it wasn't."""
        stopped_at = self._stopped_at
        return 0.0 if stopped_at is None else time.monotonic() - stopped_at
