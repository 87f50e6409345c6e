"""How many calls of a run this worker has under way, over all shards that it works on."""

import asyncio
import threading
from collections import Counter
from uuid import UUID


class InFlight:
    """Places for calls, shared by the shards of a run: where one ends, the next one fills.

    There are half as many again as calls may be under way: those are recorded and have leave, so
    that one leaves in the moment in which another one's answer comes, and not when it is stored.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[UUID] = Counter()
        self._under_way: dict[UUID, asyncio.Semaphore] = {}

    def take(self, run_id: UUID, in_flight: int, wanted: int) -> int:
        """Take up to `wanted` of the places; how many there were."""
        with self._lock:
            given = max(0, min(wanted, places(in_flight) - self._taken.get(run_id, 0)))
            if given:
                self._taken[run_id] += given
            return given

    def give_back(self, run_id: UUID, places_: int) -> None:
        """Let others have places."""
        with self._lock:
            self._taken[run_id] -= places_
            if self._taken[run_id] <= 0:
                del self._taken[run_id]
                self._under_way.pop(run_id, None)

    def under_way(self, run_id: UUID, in_flight: int) -> asyncio.Semaphore:
        """What holds a call back while as many as may be are under way."""
        with self._lock:
            return self._under_way.setdefault(run_id, asyncio.Semaphore(in_flight))


def places(in_flight: int) -> int:
    """How many calls may have leave where so many may be under way."""
    return in_flight + max(1, in_flight // 2)
