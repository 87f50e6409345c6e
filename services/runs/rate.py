"""How quickly a run goes on, seen from without."""

from collections import deque

RATE_SECONDS = 15.0
"""The rate is that of the last seconds: the start of a run says little about its end."""


class Rate:
    """Items a second, lately."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def add(self, now: float, done: int) -> None:
        """Record how many are done."""
        self._seen.append((now, done))
        while now - self._seen[0][0] > RATE_SECONDS:
            self._seen.popleft()

    def per_second(self) -> float | None:
        """The rate; None after less than a second."""
        (began, first), (ended, last) = self._seen[0], self._seen[-1]
        return (last - first) / (ended - began) if ended - began >= 1.0 else None
