"""Which answers this process computes now: callers at the same time share one computation."""

import threading
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Found:
    """An answer that was computed before, as JSON: each caller reads a copy of its own."""

    text: bytes | str
    computed_at: float
    """By this process's monotonic clock."""


@dataclass(eq=False)
class Flight:
    """One computation in this process. Callers who come meanwhile wait for its end."""

    key: str
    ended: threading.Event = field(default_factory=threading.Event)
    found: Found | None = None
    """Its answer, if it is good for those who waited."""
    is_forgotten: bool = False
    """Whether its value was made invalid while it was computed."""


class Flights:
    """The computations under way in this process, by their key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def join_or_begin(self, key: str) -> tuple[Flight, bool]:
        """Return the flight for a key, and whether the caller has just begun it."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = Flight(key)
            return flight, True

    def end(self, flight: Flight, found: Found | None) -> None:
        """End a flight; `found` is None where those who waited have to look for themselves."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            flight.found = None if flight.is_forgotten else found
        flight.ended.set()

    def forget(self, key: str) -> None:
        """What is computed for a key now isn't good any more; the next caller computes it anew."""
        with self._lock:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.is_forgotten = True

    def forget_all(self) -> None:
        """The same for all keys."""
        with self._lock:
            for flight in self._flights.values():
                flight.is_forgotten = True
            self._flights.clear()
