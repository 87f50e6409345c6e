"""Slots: how many calls of a run this worker has in hand, over all shards it works on."""

import asyncio
import threading
from collections.abc import Collection
from uuid import UUID
from weakref import WeakValueDictionary

from promptstack.repositories.run_models import Run
from promptstack.services.runs.shards.call_pool import RecordedCall


class RunSlots:
    """The slots of one run, shared by its shards: when one ends, the others go on with its slots.

    Admit 1.5 times the concurrency limit, so that a recorded call can start the moment one
    finishes.
    """

    def __init__(self, in_flight: int) -> None:
        self.total = in_flight + max(1, in_flight // 2)
        self.concurrency = asyncio.Semaphore(in_flight)
        """Bounds the calls that are sent."""
        self._lock = threading.Lock()
        self._taken = 0

    def take(self, wanted: int) -> int:
        """Take up to `wanted` slots; returns how many were free."""
        with self._lock:
            given = max(0, min(wanted, self.total - self._taken))
            self._taken += given
            return given

    def give_back(self, slots: int) -> None:
        """Let other shards have slots."""
        with self._lock:
            self._taken -= slots


class WorkerSlots:
    """The slots of every run that this worker works on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakValueDictionary[UUID, RunSlots] = WeakValueDictionary()

    def of(self, run: Run) -> RunSlots:
        """The slots of a run; they exist as long as one of its shards holds them."""
        with self._lock:
            return self._runs.setdefault(run.id, RunSlots(run.in_flight))


class ShardSlots:
    """The slots that one shard has taken, and the calls in them."""

    def __init__(self, run_slots: RunSlots) -> None:
        self._run_slots = run_slots
        self._max_waiting = run_slots.total
        """Smaller after the limiter has refused a call."""
        self.waiting = 0
        """Calls that wait for a permit."""
        self.recorded: set[RecordedCall] = set()
        """Calls whose attempts are on record and not settled."""

    @property
    def in_use(self) -> int:
        """How many calls are in hand."""
        return self.waiting + len(self.recorded)

    def take(self, wanted: int) -> int:
        """Take slots for calls that wait for a permit; returns how many were free."""
        given = self._run_slots.take(min(wanted, self._max_waiting - self.waiting))
        self.waiting += given
        return given

    def update(
        self,
        *,
        permitted: int,
        refused: int,
        settled: Collection[RecordedCall],
        recorded: Collection[RecordedCall],
    ) -> None:
        """Note what became of calls; give back the slots of those that are over."""
        before = self.in_use
        self.waiting -= permitted + refused
        self.recorded.difference_update(settled)
        self.recorded.update(recorded)
        self._run_slots.give_back(before - self.in_use)
        if permitted:
            self._max_waiting = min(self._run_slots.total, self._max_waiting + permitted)

    def shrink(self) -> None:
        """Let no more calls wait for a permit than wait now: the limiter has no room."""
        self._max_waiting = max(1, self.waiting)

    def release(self) -> None:
        """Give all slots back."""
        self._run_slots.give_back(self.in_use)
        self.waiting = 0
        self.recorded.clear()
