"""What has come to a shard, with its answers judged: some moments' worth at once."""

import math
from collections import deque
from collections.abc import Callable, Iterable

from promptstack.config.errors import PromptStackError
from promptstack.services.execution.provider_calls import bug
from promptstack.services.runs.shards.call_pool import Answered, Event
from promptstack.services.runs.shards.store import Unfit
from promptstack.services.runs.shards.workload import Asking

AT_ONCE_SECONDS = 0.5
LAST_SECONDS = 8.0
"""What all judging may take after a shard was stopped: a worker that stops has little more."""


class Judging:
    """Events in their order. Where judging takes long, others wait, and a cancel is seen."""

    def __init__(self, asking: Asking, clock: Callable[[], float]) -> None:
        self._asking = asking
        self._clock = clock
        self._waiting: deque[Event] = deque()
        self._seconds_left = math.inf

    def __bool__(self) -> bool:
        """Whether any wait."""
        return bool(self._waiting)

    def add(self, events: Iterable[Event]) -> None:
        """Take what has come."""
        self._waiting.extend(events)

    def hurry(self) -> None:
        """From now on, let judging take so long and no longer: the shard is to end."""
        self._seconds_left = min(self._seconds_left, LAST_SECONDS)

    def some(self) -> list[Event]:
        """As many as can be judged in a moment: one at least, where there is one."""
        judged: list[Event] = []
        until = self._clock() + AT_ONCE_SECONDS
        while self._waiting and (not judged or self._clock() < until):
            judged.append(self._judged(self._waiting.popleft()))
        return judged

    def rest(self) -> list[Event]:
        """All, when the shard ends."""
        self.hurry()
        waiting = list(self._waiting)
        self._waiting.clear()
        return list(map(self._judged, waiting))

    def _judged(self, event: Event) -> Event:
        """The same, or what it is where its answer can't be taken: it was paid for, and says so."""
        if not isinstance(event, Answered):
            return event
        begun = self._clock()
        try:
            judge = self._asking.fault if self._seconds_left > 0 else self._asking.unjudged
            fault = judge(event.answer)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others must be kept
            fault = bug(error)
        self._seconds_left -= self._clock() - begun
        return event if fault is None else unfit(event, fault)


def unfit(event: Answered, error: Exception) -> Unfit:
    """An answer that was paid for and can't be taken, or stored."""
    known = error if isinstance(error, PromptStackError) else bug(error)
    return Unfit(event.sent, known, event.answer)
