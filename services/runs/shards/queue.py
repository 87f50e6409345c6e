"""The calls of a shard that are still to be made, and what they wait for."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from itertools import count

from promptstack.config.errors import PromptStackError
from promptstack.services.runs.shards.failure_policy import TriedLater
from promptstack.services.runs.shards.workload import Call


class WaitingCalls:
    """In order; those that have failed come again after their delay."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready: deque[Call] = deque()
        self._delayed: list[tuple[float, int, Call, PromptStackError]] = []
        self._order = count()
        self._held_until = 0.0
        self._cause: PromptStackError | None = None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._ready or self._delayed)

    def add(self, calls: Iterable[Call]) -> None:
        """Make them after the others."""
        self._ready.extend(calls)

    def put_back(self, calls: list[Call]) -> None:
        """Make them before the others."""
        self._ready.extendleft(reversed(calls))

    def delay(self, call: Call, seconds: float, cause: PromptStackError) -> None:
        """Make it after some time."""
        heapq.heappush(self._delayed, (self._clock() + seconds, next(self._order), call, cause))

    def hold(self, seconds: float, cause: PromptStackError | None = None) -> None:
        """Let none leave for some time."""
        self._held_until, self._cause = self._clock() + seconds, cause

    def count_ready(self) -> int:
        """How many may leave now."""
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heapq.heappop(self._delayed)[2])
        return len(self._ready) if now >= self._held_until else 0

    def take(self, number: int) -> list[Call]:
        """The next ones."""
        return [self._ready.popleft() for _ in range(number)]

    def wait(self) -> tuple[float, PromptStackError | None]:
        """For how many seconds none can leave, and what they wait for."""
        now = self._clock()
        if self._ready:
            seconds = max(0.0, self._held_until - now)
            return seconds, self._cause if seconds else None
        if not self._delayed:
            return 0.0, None
        seconds = self._delayed[0][0] - now
        # Whoever begins anew knows nothing of their delays: so none comes before its time.
        last, *_, cause = max(self._delayed)
        return seconds, TriedLater(
            f"What has failed is tried again after a while; the shard waits for it. {cause}",
            retry_after=max(0.0, last - now),
        )
