"""Bounds the bytes of the calls that a worker has in hand, until their answers are stored."""

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any


class Room:
    """Room for one call. It is given in the order of asking."""

    def __init__(self, size: int, when_given: Callable[[], object]) -> None:
        self.size = size
        self.is_given = False
        self.when_given = when_given


class BytesInFlight:
    """Shares out a worker's memory for calls among all jobs and shards, from any thread.

    Who comes first is served first, so that many small calls don't keep a large one waiting for
    ever. A call that is larger than all there is gets its room when nothing else is in hand.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = 0
        self._line: deque[Room] = deque()
        self._lock = threading.Lock()

    def ask(self, size: int, when_given: Callable[[], object]) -> Room:
        """Ask for room. If none is free it is given later: `when_given` is called in any thread.

        A size of 0 takes no room and never waits.
        """
        room = Room(size, when_given)
        with self._lock:
            if size and (self._line or not self._fits(room)):
                self._line.append(room)
            else:
                self._give(room)
        return room

    def give_back(self, size: int) -> None:
        """Give back room that was given."""
        self._free(size, None)

    def withdraw(self, room: Room) -> None:
        """Give a room back, or stop waiting for it."""
        self._free(0, room)

    @asynccontextmanager
    async def hold(
        self, size: int, wait: Callable[[Coroutine[Any, Any, object]], Awaitable[object]]
    ) -> AsyncIterator[None]:
        """Hold room in this context. `wait` awaits it, and may be cancelled."""
        loop, given = asyncio.get_running_loop(), asyncio.Event()
        room = self.ask(size, lambda: loop.call_soon_threadsafe(given.set))
        try:
            if not room.is_given:
                await wait(given.wait())
            yield
        finally:
            self.withdraw(room)

    def _free(self, size: int, withdrawn: Room | None) -> None:
        with self._lock:
            if withdrawn is not None and withdrawn.is_given:
                size = withdrawn.size
            elif withdrawn is not None:
                self._line.remove(withdrawn)
            self._held -= size
            given = []
            while self._line and self._fits(self._line[0]):
                room = self._line.popleft()
                self._give(room)
                given.append(room)
        for room in given:
            room.when_given()

    def _fits(self, room: Room) -> bool:
        return not self._held or self._held + room.size <= self._most

    def _give(self, room: Room) -> None:
        self._held += room.size
        room.is_given = True
