"""How many calls came in, how many at once, and how they ended."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Call:
    """A provider call under way. Without a status when it ends, it was cut off."""

    id: str
    status: int | None = None


class Traffic:
    """Counters of provider calls; calls at the control doors aren't counted."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._calls = 0
        self.reset()

    def reset(self) -> None:
        """Start the counts anew; calls under way stay in flight."""
        self.requests = 0
        self.callers: set[str] = set()
        self.peak_in_flight = self.in_flight
        self.by_status: Counter[str] = Counter()

    @contextmanager
    def call(self, caller: str) -> Iterator[Call]:
        """Count one call from its start to its end; `caller` names its connection."""
        self.callers.add(caller)
        self._calls += 1
        self.requests += 1
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        call = Call(id=f"req_{self._calls:012d}")
        try:
            yield call
        finally:
            self.in_flight -= 1
            self.by_status["aborted" if call.status is None else str(call.status)] += 1

    def counts(self) -> dict[str, object]:
        """Return all counters, ready for JSON."""
        return {
            "requests": self.requests,
            "connections": len(self.callers),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
            "by_status": dict(self.by_status),
        }
