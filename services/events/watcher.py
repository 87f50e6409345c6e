"""One who watches a job or run. However slowly it reads, it holds the newest state and no more."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

from promptstack.services.events.places import Event, Look, Place
from promptstack.services.streams.pieces import Piece
from promptstack.services.validation.json_text import dump_json

MOST_CHARACTERS = 65_536
"""Of a text that waits to be read here; the rest waits in its stream."""


class Watcher:
    """The events of one reader, to be iterated over; they are over after `end`, or once closed.

    It lives on one event loop, and so do those who call it.
    """

    def __init__(self, place: Place, *, only_end: bool = False) -> None:
        """With `only_end`, it is told no states: less is asked for it."""
        self.only_end = only_end
        self._place = place
        self._shown = place.shown
        self._look: Look | None = None
        self._pieces: deque[Piece] = deque()
        self._characters = 0
        self._end: Look | None = None
        self._is_over = False
        self._news = asyncio.Event()
        self.position = place.position
        """How far it was told the text; some of that may not be read yet."""
        self.has_all = asyncio.Event()
        """Set where it was told the text up to its end."""
        self.on_room: Callable[[], None] = lambda: None

    @property
    def end(self) -> Look | None:
        """How it ended, once that is known."""
        return self._end

    @property
    def has_room(self) -> bool:
        """Whether it may be told more of a text."""
        return self._characters < MOST_CHARACTERS

    def show(self, look: Look) -> None:
        """Show where it stands, in place of what is not read yet."""
        if not self.only_end and look.digest != self._shown:
            self._shown = look.digest
            self._look = look
            self._news.set()

    def hear(self, pieces: Sequence[Piece]) -> None:
        """Tell more of the text."""
        for piece in pieces:
            self.position = piece.position
            if piece.kind == "end":
                self.has_all.set()
            else:
                self.has_all.clear()
                self._pieces.append(piece)
                self._characters += len(piece.text)
        if self._pieces:
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
        """What is to be told now: first where it stands, then its text, then its end."""
        look, self._look = self._look, None
        if look is None and self._pieces:
            return self._text()
        if look is None and self._end is not None and not self._is_over:
            look, self._is_over = self._end, True
        if look is None:
            return None
        self._place = replace(self._place, shown=look.digest)
        return Event(look.kind, look.data, self._place, look)

    def _text(self) -> Event:
        """The next piece, with some of those after it that wait as well."""
        had_room = self.has_room
        piece = self._pieces.popleft()
        text = piece.text
        while (
            piece.kind == "text"
            and self._pieces
            and self._pieces[0].kind == "text"
            and len(text) + len(self._pieces[0].text) <= MOST_CHARACTERS
        ):
            piece = self._pieces.popleft()
            text += piece.text
        self._characters -= len(text)
        if not had_room and self.has_room:
            self.on_room()
        self._place = replace(self._place, position=piece.position)
        if piece.kind == "restart":
            data = {"attempt": piece.attempt, "reason": piece.reason}
        else:
            data = {"text": text}
        return Event(piece.kind, dump_json(data).decode(), self._place)
