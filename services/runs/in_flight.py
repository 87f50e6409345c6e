"""How many calls of a run this worker has under way, over all shards that it works on."""

import threading
from collections import Counter
from uuid import UUID


class InFlight:
    """Places for calls, shared by the shards of a run: where one ends, the next one fills."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: Counter[UUID] = Counter()

    def take(self, run_id: UUID, limit: int, wanted: int) -> int:
        """Take up to `wanted` places of `limit`; how many there were."""
        with self._lock:
            given = max(0, min(wanted, limit - self._taken[run_id]))
            self._taken[run_id] += given
            return given

    def give_back(self, run_id: UUID, places: int) -> None:
        """Let others have places."""
        with self._lock:
            self._taken[run_id] -= places
            if self._taken[run_id] <= 0:
                del self._taken[run_id]
