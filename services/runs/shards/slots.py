"""Slots: which calls of a run this worker has in hand, over all shards it works on."""

import asyncio
import threading
from collections.abc import Callable, Collection, Sequence
from uuid import UUID
from weakref import WeakValueDictionary

from promptstack.repositories.run_models import Run
from promptstack.services.execution.bytes_in_flight import BytesInFlight, Room
from promptstack.services.execution.content_calls import Call
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

    def free(self) -> int:
        """How many slots are free just now."""
        with self._lock:
            return max(0, self.total - self._taken)

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
    """The slots and the memory that one shard has taken, and the calls in them."""

    def __init__(
        self,
        run_slots: RunSlots,
        memory: BytesInFlight,
        size: Callable[[Call], int],
        wake: Callable[[], None],
    ) -> None:
        """`size` says how many bytes a call takes; `wake` is called when there is room again."""
        self._run_slots = run_slots
        self._memory = memory
        self._size = size
        self._wake = wake
        self._asked: Room | None = None
        """The room that the next call waits for."""
        self._held = 0
        self._max_waiting = run_slots.total
        """Smaller after the limiter has refused a call."""
        self.waiting: set[Call] = set()
        """Calls that wait for a permit."""
        self.recorded: set[RecordedCall] = set()
        """Calls whose attempts are on record and not settled."""

    @property
    def in_use(self) -> int:
        """How many calls are in hand."""
        return len(self.waiting) + len(self.recorded)

    def free(self) -> int:
        """How many calls may be taken in hand just now, if there is memory for them."""
        return min(self._run_slots.free(), self._max_waiting - len(self.waiting))

    def take(self, calls: Sequence[Call]) -> int:
        """Take slots and memory for the first of these calls; returns for how many."""
        slots = self._run_slots.take(min(len(calls), self._max_waiting - len(self.waiting)))
        taken = 0
        while taken < slots and self._has_memory(self._size(calls[taken])):
            taken += 1
        self.waiting.update(calls[:taken])
        self._run_slots.give_back(slots - taken)
        if not slots:
            self.stop_asking()
        return taken

    def stop_asking(self) -> None:
        """Let others have the room that was asked for: no call could leave now."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._memory.withdraw(asked)

    def update(
        self,
        *,
        permitted: Collection[Call],
        refused: Collection[Call],
        settled: Collection[RecordedCall],
        recorded: Collection[RecordedCall],
    ) -> None:
        """Note what became of calls; give back the slots and memory of those that are over."""
        before = self.in_use
        entered = self.waiting.intersection((*permitted, *refused))
        over, new = self.recorded.intersection(settled), set(recorded) - self.recorded
        freed = sum(map(self._size, entered)) + sum(self._size(one.call) for one in over)
        freed -= sum(self._size(one.call) for one in new)
        self.waiting -= entered
        self.recorded -= over
        self.recorded |= new
        self._run_slots.give_back(before - self.in_use)
        self._give_back(freed)
        if permitted:
            self._max_waiting = min(self._run_slots.total, self._max_waiting + len(permitted))

    def shrink(self) -> None:
        """Let no more calls wait for a permit than wait now: the limiter has no room."""
        self._max_waiting = max(1, len(self.waiting))

    def release(self) -> None:
        """Give all slots and memory back."""
        self._run_slots.give_back(self.in_use)
        self.waiting.clear()
        self.recorded.clear()
        self.stop_asking()
        self._give_back(self._held)

    def _has_memory(self, size: int) -> bool:
        """Take memory for a call, or ask for it and go on when it is given."""
        if self._asked is None:
            self._asked = self._memory.ask(size, self._wake)
        if not self._asked.is_given:
            return False
        if self._asked.size < size:
            # It was asked for a smaller call.
            self.stop_asking()
            return self._has_memory(size)
        asked, self._asked = self._asked, None
        self._held += asked.size
        self._give_back(asked.size - size)
        return True

    def _give_back(self, size: int) -> None:
        self._held -= size
        self._memory.give_back(size)
