"""Counts calls: how many came, how many at once, how they ended."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Call:
    """A provider call in flight. One that ends without a status was cut off."""

    id: str
    status: int | None = None


@dataclass
class Admitted:
    """The admitted calls. Times are seconds of a monotonic clock."""

    first_at: float
    last_at: float = 0.0
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    requests_by_second: list[int] = field(default_factory=list)
    """In the first second after `first_at`, the second one, and so on."""
    tokens_by_second: list[int] = field(default_factory=list)

    def count(self, now: float, input_tokens: int, output_tokens: int) -> None:
        """Add one call."""
        self.last_at = now
        self.requests += 1
        self.input_tokens += input_tokens
        self.output_tokens += output_tokens
        missing = int(now - self.first_at) + 1 - len(self.requests_by_second)
        self.requests_by_second += [0] * missing
        self.tokens_by_second += [0] * missing
        self.requests_by_second[-1] += 1
        self.tokens_by_second[-1] += input_tokens + output_tokens


class Traffic:
    """Counters of provider calls; calls of the control API aren't counted."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.in_flight = 0
        self._calls = 0
        self.reset()

    def reset(self) -> None:
        """Reset the counts; calls in flight stay in flight."""
        self.requests = 0
        self.callers: set[str] = set()
        self.peak_in_flight = self.in_flight
        self.by_status: Counter[str] = Counter()
        self.admitted: Admitted | None = None

    def admit(self, input_tokens: int, output_tokens: int) -> None:
        """Count a call that was admitted and billed."""
        now = self._clock()
        if self.admitted is None:
            self.admitted = Admitted(first_at=now)
        self.admitted.count(now, input_tokens, output_tokens)

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
            "admitted": asdict(self.admitted) if self.admitted else None,
        }
