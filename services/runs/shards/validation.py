"""The events of a shard, with their answers validated: a moment's worth at once."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from promptstack.services.execution.provider_calls import known
from promptstack.services.runs.shards.call_pool import CallAnswered, CallFailed, Event
from promptstack.services.runs.shards.workload import Workload


@dataclass(frozen=True)
class ValidationLimits:
    """How long validation may keep a shard from anything else."""

    at_once_seconds: float = 0.5
    """The longest time before a cancel is seen."""
    last_seconds: float = 8.0
    """All the time there is after a stop: the worker itself has little more."""


class ValidationQueue:
    """Events in order. When validation takes long the rest waits, so that a cancel is seen."""

    def __init__(
        self, workload: Workload, limits: ValidationLimits, clock: Callable[[], float]
    ) -> None:
        self._workload = workload
        self._limits = limits
        self._clock = clock
        self._waiting: deque[Event] = deque()
        self._seconds_left = math.inf

    def __bool__(self) -> bool:
        """Whether any event waits."""
        return bool(self._waiting)

    def add(self, events: Iterable[Event]) -> None:
        """Add events at the end."""
        self._waiting.extend(events)

    def hurry(self) -> None:
        """Bound the time that validation may still take, as the shard is to end."""
        self._seconds_left = min(self._seconds_left, self._limits.last_seconds)

    def take(self) -> list[Event]:
        """Validate for a moment; at least one event, if there is one."""
        events: list[Event] = []
        until = self._clock() + self._limits.at_once_seconds
        while self._waiting and (not events or self._clock() < until):
            events.append(self._validated(self._waiting.popleft()))
        return events

    def drain(self) -> list[Event]:
        """Validate all that is left, in a hurry."""
        self.hurry()
        events = list(map(self._validated, self._waiting))
        self._waiting.clear()
        return events

    def _validated(self, event: Event) -> Event:
        if not isinstance(event, CallAnswered):
            return event
        started = self._clock()
        workload = self._workload
        validate = workload.validate if self._seconds_left > 0 else workload.skip_validation
        error: Exception | None
        try:
            error = validate(event.recorded.call, event.answer)
        except Exception as unexpected:  # noqa: BLE001 - whatever it is, keep the other answers
            error = unexpected
        self._seconds_left -= self._clock() - started
        return event if error is None else rejected(event, error)


def rejected(event: CallAnswered, error: Exception) -> CallFailed:
    """A failed call whose answer was paid for, and can't be used or stored."""
    return CallFailed(event.recorded, known(error), event.answer)
