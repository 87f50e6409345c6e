"""Slots: which calls of a run this worker has in hand, over all shards it works on."""

import asyncio
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from uuid import UUID
from weakref import WeakValueDictionary

from promptstack.repositories.run_models import Run
from promptstack.services.execution.bytes_in_flight import BytesInFlight, Room
from promptstack.services.execution.content_calls import Call
from promptstack.services.runs.shards.call_pool import RecordedCall


class CallLimit:
    """Bounds the calls that are sent, by a bound that may change. Used on the event loop."""

    def __init__(self, most: int) -> None:
        self.most = most
        """How many may be sent now. When it grows, more leave with the next that ends."""
        self._sent = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if not self._waiting and self._sent < self.most:
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
        while self._waiting and self._sent < self.most:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                self._sent += 1


class RunSlots:
    """The slots of one run, shared by its shards: when one ends, the others go on with its slots.

    Admit 1.5 times the concurrency limit, so that a recorded call can start the moment one
    finishes.
    """

    def __init__(self, in_flight: int, share: Callable[[], None] = lambda: None) -> None:
        """Take `share`, which is called when the run begins or ceases to lack slots."""
        self.in_flight = in_flight
        """How many of its calls may be in flight, if other users leave it so many."""
        self.user_id: UUID | None = None
        self.weight = 1.0
        self.concurrency = CallLimit(in_flight)
        """Bounds the calls that are sent."""
        self._share = share
        self._lock = threading.Lock()
        self._taken = 0
        self._lacking: set[object] = set()

    @property
    def total(self) -> int:
        """How many slots it has now."""
        most = self.concurrency.most
        return most + max(1, most // 2)

    @property
    def lacks(self) -> bool:
        """Whether calls of the run are only waiting for a slot."""
        return bool(self._lacking)

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

    def note(self, shard: object, *, lacks: bool) -> None:
        """Note whether a shard has calls that only wait for a slot."""
        with self._lock:
            before = bool(self._lacking)
            if lacks:
                self._lacking.add(shard)
            else:
                self._lacking.discard(shard)
            is_news = before != bool(self._lacking)
        if is_news:
            self._share()


class WorkerSlots:
    """The slots of every run that this worker works on, shared between users.

    Who has many runs would else have most of the worker. It concerns users who lack slots: others
    have all that they can use. Each has a part, and what one can't use of it goes to the others.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: WeakValueDictionary[UUID, RunSlots] = WeakValueDictionary()

    def of(self, run: Run, weight: float = 1.0) -> RunSlots:
        """The slots of a run; they exist as long as one of its shards holds them."""
        new = RunSlots(run.in_flight, self._share)
        with self._lock:
            slots = self._runs.setdefault(run.id, new)
            slots.user_id, slots.weight = run.user_id, weight
        self._share()
        return slots

    def _share(self) -> None:
        with self._lock:
            runs = list(self._runs.values())
            for run in runs:
                rivals = [one for one in runs if one.lacks or one is run]
                run.concurrency.most = _share_of(run, rivals)


def _share_of(mine: RunSlots, runs: Sequence[RunSlots]) -> int:
    """How many calls of `mine` may be in flight, as all of these runs want all of theirs.

    Parts are by weight, and so large that the user who wants least for their weight has it all.
    But no part is smaller than the largest run: a weight takes from nobody what one run could use.
    """
    wanted: Counter[UUID | None] = Counter()
    for run in runs:
        wanted[run.user_id] += run.in_flight
    if len(wanted) == 1:
        return mine.in_flight
    weights = {run.user_id: run.weight for run in runs}
    least = min(wanted[user] / weight for user, weight in weights.items())
    largest = max(run.in_flight for run in runs)
    parts = {user: max(largest, least * weight) for user, weight in weights.items()}
    mine_of_user = mine.in_flight / wanted[mine.user_id]
    return max(1, int(_divided(wanted, parts)[mine.user_id] * mine_of_user))


def _divided(
    wanted: Mapping[UUID | None, int], parts: Mapping[UUID | None, float]
) -> dict[UUID | None, float]:
    """Divide the sum of the parts: what one doesn't want of theirs goes to the others, by parts."""
    left, parts_left = sum(parts.values()), sum(parts.values())
    given: dict[UUID | None, float] = {}
    for user in sorted(wanted, key=lambda one: wanted[one] / parts[one]):
        given[user] = min(wanted[user], left * parts[user] / parts_left)
        left -= given[user]
        parts_left -= parts[user]
    return given


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

    def note_left(self, calls: int) -> None:
        """Note how many calls could be taken in hand now if there were slots and memory."""
        self._run_slots.note(self, lacks=calls > 0 and not self._run_slots.free())

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
        self.note_left(0)
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
