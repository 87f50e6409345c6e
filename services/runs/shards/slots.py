"""Slots: which calls of a run this worker has in hand, over all shards it works on."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import NamedTuple
from uuid import UUID
from weakref import WeakValueDictionary

from promptstack.repositories.run_models import Run
from promptstack.services.execution.bytes_in_flight import BytesInFlight, Room
from promptstack.services.execution.content_calls import Call
from promptstack.services.runs.shards.call_pool import RecordedCall


class CallLimit:
    """Bounds the calls that are sent, by a bound that may change. Used on the event loop."""

    def __init__(self, most: Callable[[], int]) -> None:
        self._most = most
        self._sent = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._waiting and self._sent < self._most():
            self._sent += 1
            return
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except BaseException:
            if mine.done() and not mine.cancelled():
                self._leave()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._sent -= 1
        while self._waiting and self._sent < self._most():
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                self._sent += 1


class RunSlots:
    """The slots of one run, shared by its shards: when one ends, the others go on with its slots.

    Admit 1.5 times the concurrency limit, so that a recorded call can start the moment one
    finishes.
    """

    def __init__(self, in_flight: int, most: Callable[[], int] | None = None) -> None:
        """Take `most`, which says how many of its calls may be in flight now."""
        self._most = most or (lambda: in_flight)
        self.concurrency = CallLimit(self._most)
        """Bounds the calls that are sent."""
        self._lock = threading.Lock()
        self._taken = 0

    @property
    def total(self) -> int:
        """How many slots it has now."""
        most = self._most()
        return most + max(1, most // 2)

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


class _Sharer(NamedTuple):
    """A run that shares a worker with others."""

    run_id: UUID
    user_id: UUID | None
    weight: float
    in_flight: int


class WorkerSlots:
    """The slots of every run that this worker works on.

    While several users have shards here, all runs of one have together as many calls in flight as
    the largest run of any: else who has many runs would have most of the worker. A smaller weight
    than another's here makes it less.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakValueDictionary[_Sharer, RunSlots] = WeakValueDictionary()

    def of(self, run: Run, weight: float = 1.0) -> RunSlots:
        """The slots of a run; they exist as long as one of its shards holds them."""
        sharer = _Sharer(run.id, run.user_id, weight, run.in_flight)
        new = RunSlots(run.in_flight, partial(self._most, sharer))
        with self._lock:
            return self._runs.setdefault(sharer, new)

    def _most(self, mine: _Sharer) -> int:
        with self._lock:
            all_ = list(self._runs.keys())
        if all(one.user_id == mine.user_id for one in all_):
            return mine.in_flight
        largest = max(one.in_flight for one in all_)
        heaviest = max(one.weight for one in all_)
        of_user = sum(one.in_flight for one in all_ if one.user_id == mine.user_id)
        share = largest * mine.weight / heaviest / max(of_user, 1)
        return max(1, int(mine.in_flight * min(1.0, share)))


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
