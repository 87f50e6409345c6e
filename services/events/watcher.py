"""One who watches a job or run. However slowly it reads, it holds the newest state and no more."""

import asyncio
from typing import Self

from promptstack.services.events.places import Event, Look, Place


class Watcher:
    """The events of one reader, to be iterated over; they are over after `end`, or once closed.

    It lives on one event loop, and so do those who call it.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._shown = place.shown
        self._look: Look | None = None
        self._end: Look | None = None
        self._is_over = False
        self._news = asyncio.Event()

    @property
    def end(self) -> Look | None:
        """How it ended, once that is known."""
        return self._end

    def show(self, look: Look) -> None:
        """Show where it stands, in place of what is not read yet."""
        if look.digest != self._shown:
            self._shown = look.digest
            self._look = look
            self._news.set()

    def finish(self, end: Look) -> None:
        """Show the end. It is the last event, and is never left out."""
        self._end = end
        self._look = None
        self._news.set()

    def close(self) -> None:
        """End the events here; the reader may go on at another time."""
        self._is_over = True
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        """The next event; waits for it."""
        while True:
            event = self._next()
            if event is not None:
                return event
            if self._is_over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()

    def _next(self) -> Event | None:
        look, self._look = self._look, None
        if look is None and self._end is not None and not self._is_over:
            look, self._is_over = self._end, True
        if look is None:
            return None
        self._place = self._place.seeing(look.digest)
        return Event(look.kind, look.data, self._place)
