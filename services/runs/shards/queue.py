"""The calls of a shard that are still to be made, and what they wait for."""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from promptstack.config.errors import PromptStackError
from promptstack.services.errors import TriedLater
from promptstack.services.execution.content_calls import Call


class CallQueue:
    """Calls in order; a failed call comes back after its delay."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready: deque[Call] = deque()
        self._delayed: list[tuple[float, int, Call, PromptStackError]] = []
        self._order = count()
        self._held_until = 0.0
        self._cause: PromptStackError | None = None

    def __bool__(self) -> bool:
        """Whether any call is left."""
        return bool(self._ready or self._delayed)

    def add(self, calls: Iterable[Call]) -> None:
        """Add calls at the end."""
        self._ready.extend(calls)

    def put_back(self, calls: Sequence[Call]) -> None:
        """Put calls back at the front."""
        self._ready.extendleft(reversed(calls))

    def delay(self, call: Call, seconds: float, cause: PromptStackError) -> None:
        """Add a call that may leave after some seconds."""
        heapq.heappush(self._delayed, (self._clock() + seconds, next(self._order), call, cause))

    def hold(self, seconds: float, cause: PromptStackError | None = None) -> None:
        """Let no call leave for some seconds."""
        self._held_until, self._cause = self._clock() + seconds, cause

    def count_ready(self) -> int:
        """How many calls may leave now."""
        now = self._clock()
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heapq.heappop(self._delayed)[2])
        return len(self._ready) if now >= self._held_until else 0

    def take(self, number: int) -> list[Call]:
        """Take the next calls."""
        return [self._ready.popleft() for _ in range(number)]

    def wait(self) -> tuple[float, PromptStackError | None]:
        """How many seconds pass until a call may leave, and why."""
        now = self._clock()
        if self._ready:
            seconds = max(0.0, self._held_until - now)
            return seconds, self._cause if seconds else None
        if not self._delayed:
            return 0.0, None
        seconds = self._delayed[0][0] - now
        # The next worker knows nothing of single delays, so it may begin after the last of them.
        last, *_, cause = max(self._delayed)
        return seconds, TriedLater(
            f"What has failed is tried again after a while; the shard waits for it. {cause}",
            retry_after=max(0.0, last - now),
        )
