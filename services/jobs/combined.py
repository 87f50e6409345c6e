"""Calls of several threads at once, made together: the first one to come leads.

While it works, others come and wait; the next of them leads those who wait then. Where several were
there the last time, it gives them a moment to come again. A call that comes alone waits for nobody.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

GATHER_SECONDS = 0.001
"""The longest wait for as many as came the last time."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class _Call(Generic[Item, Result]):
    """One call, and the thread that waits for it."""

    def __init__(self, item: Item) -> None:
        self.item = item
        self.results: list[Result] = []
        """Its result, once it is there."""
        self.is_leader = False
        self.led: list[_Call[Item, Result]] = []
        self.turn = threading.Lock()
        """Held until it leads or is over."""
        self.turn.acquire()


class Combined(Generic[Item, Result]):
    """Gives `work` the items of all threads that call at once."""

    def __init__(self, work: Callable[[Sequence[Item]], Sequence[Result]], most: int) -> None:
        """`work` takes up to `most` items. What it did with them it must be able to do again.

        Where it fails with several items, each thread lets it work on its own item.
        """
        self._work = work
        self._most = most
        self._lock = threading.Lock()
        self._waiting: list[_Call[Item, Result]] = []
        self._is_led = False
        self._expected = 1
        """How many came the last time."""
        self._gathering: _Call[Item, Result] | None = None
        """The leader that waits for them."""

    def __call__(self, item: Item) -> Result:
        """Let the item be worked on; what came of it. Raises what `work` raises for it alone."""
        mine: _Call[Item, Result] = _Call(item)
        try:
            with self._lock:
                self._waiting.append(mine)
                mine.is_leader = not self._is_led
                self._is_led = True
                if self._gathering and len(self._waiting) >= self._expected:
                    self._gathering.turn.release()
                    self._gathering = None
            if not mine.is_leader:
                mine.turn.acquire()
            if mine.is_leader:
                self._lead(mine)
        finally:
            # Also where this thread was interrupted: nobody may wait for it.
            self._leave(mine)
        return mine.results[0] if mine.results else self._work([item])[0]

    def _lead(self, mine: _Call[Item, Result]) -> None:
        with self._lock:
            is_early = len(self._waiting) < self._expected
            self._gathering = mine if is_early else None
        if is_early:
            mine.turn.acquire(timeout=GATHER_SECONDS)
        with self._lock:
            self._gathering = None
            # In their order, so that the leader is among those it leads.
            mine.led, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            self._expected = len(mine.led)
        try:
            results = self._work([call.item for call in mine.led])
        except Exception:
            if len(mine.led) == 1:
                raise
            return
        for call, result in zip(mine.led, results, strict=True):
            call.results.append(result)

    def _leave(self, mine: _Call[Item, Result]) -> None:
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
            if mine.is_leader:
                self._gathering = None
                heir = self._waiting[0] if self._waiting else None
                self._is_led = heir is not None
                if heir is not None:
                    heir.is_leader = True
                    heir.turn.release()
        for call in mine.led:
            if call is not mine:
                call.turn.release()
