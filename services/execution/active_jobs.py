"""The jobs that this worker process has in hand now, and the provider calls they wait for."""

import math
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from promptstack.services.llm.event_loop import EventLoop

T = TypeVar("T")


@dataclass(eq=False)
class ActiveJob:
    """One message's hold on a job, from before its claim to its last word in the ledger.

    A job may be held twice for a moment: cancelled, and retried before the first has let go.
    """

    job_id: UUID
    attempt: int | None = None
    """What it claimed; None while that isn't known yet."""
    call: Future[Any] | None = None
    calls: int = 0
    is_cancelled: bool = False
    """Whether we cancelled its call, and not the provider itself."""
    deadline: float = math.inf
    """When its job expires, by `time.monotonic`."""

    def next_call(self) -> int:
        """Count the calls of this hold, from 0."""
        self.calls += 1
        return self.calls - 1

    def seconds_left(self) -> float:
        """Time until its job expires."""
        return self.deadline - time.monotonic()


class ActiveJobs:
    """Lets a job's call be cancelled from another thread."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._holds: set[ActiveJob] = set()
        self._is_closing = False
        self._stopped_at: float | None = None
        self._stopped = threading.Event()

    @contextmanager
    def in_hand(self, job_id: UUID) -> Iterator[ActiveJob]:
        """Hold a job."""
        hold = ActiveJob(job_id)
        with self._lock:
            self._holds.add(hold)
        try:
            yield hold
        finally:
            with self._lock:
                self._holds.discard(hold)

    def wait_for(self, hold: ActiveJob, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a call, which must end by itself, on the event loop and wait for it.

        Raises `concurrent.futures.CancelledError`, and what the call raises.
        """
        return self.begin(hold, coroutine).result()

    def begin(self, hold: ActiveJob, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin a call on the event loop, which is cancelled where the job is taken from us.

        Raises `concurrent.futures.CancelledError` where all was stopped.
        """
        with self._lock:
            if self._stopped_at is not None:
                hold.is_cancelled = True
                coroutine.close()
                raise CancelledError
        # Without the lock: to wake the loop lets other threads run, which would all wait for it.
        call = self._loop.submit(coroutine)
        hold.call = call
        if self._stopped.is_set():
            self._cancel(hold)  # stopped just now, perhaps before it had a call
        return call

    def let_none_begin(self) -> None:
        """Let running calls end, and no other begin; a signal's handler may call it.

        A call that begins within the grace of a shutdown would be cut off at its end, and paid
        again by the next worker.
        """
        self._is_closing = True

    @property
    def is_closing(self) -> bool:
        """Whether no call may begin any more."""
        return self._is_closing

    def check_may_begin(self, hold: ActiveJob) -> None:
        """Raise `concurrent.futures.CancelledError` where no call may begin any more."""
        if self._is_closing:
            hold.is_cancelled = True
            raise CancelledError

    def pause(self, hold: ActiveJob, seconds: float) -> None:
        """Wait a little. Raises `concurrent.futures.CancelledError` when all is stopped."""
        if self._stopped.wait(seconds):
            hold.is_cancelled = True
            raise CancelledError

    def holds(self, job_id: UUID, attempt: int) -> bool:
        """Whether this process has that attempt in hand, or may be about to."""
        with self._lock:
            return any(
                hold.job_id == job_id and hold.attempt in (None, attempt) for hold in self._holds
            )

    def claimed(self) -> list[ActiveJob]:
        """The holds whose claim is surely in the ledger, as they have asked a provider."""
        with self._lock:
            return [hold for hold in self._holds if hold.call is not None]

    def cancel_lost(self, claimed: list[ActiveJob], recorded: Mapping[UUID, int]) -> list[UUID]:
        """Cancel the calls of those holds that the ledger no longer records; their jobs."""
        lost = [hold for hold in claimed if recorded.get(hold.job_id) != hold.attempt]
        # A call that ended meanwhile was not lost.
        return [hold.job_id for hold in lost if self._cancel(hold)]

    def stop(self) -> None:
        """Cancel all calls and let none begin: the jobs are handed back."""
        with self._lock:
            self._stopped_at = time.monotonic()
            self._stopped.set()
            holds = list(self._holds)
        for hold in holds:
            self._cancel(hold)

    def seconds_since_stop(self) -> float:
        """How long ago all was stopped, 0 if it wasn't."""
        stopped_at = self._stopped_at
        return 0.0 if stopped_at is None else time.monotonic() - stopped_at

    def _cancel(self, hold: ActiveJob) -> bool:
        hold.is_cancelled = True
        return hold.call is not None and hold.call.cancel()
