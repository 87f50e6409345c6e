"""HTTP/1.1 on the wire: what uvicorn does, with an end to every request and a bound to connections.

uvicorn closes connections that are idle between two requests, and no others: a request of which
the rest never comes would stay open for ever, and so would a connection on which none begins.
"""

import asyncio
from contextlib import suppress
from operator import itemgetter
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from promptstack.api.http.problems import respond

TOO_MANY = "Too many connections are open (MAX_CONNECTIONS); try again later."
ARRIVING = (h11.IDLE, h11.SEND_BODY)
"""States of a client whose request isn't here yet, or not all of it."""


class BoundedProtocol(H11Protocol):
    """One connection, whose requests each arrive in time or are ended."""

    read_seconds: float
    max_connections: int

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None

    @classmethod
    def bounded_by(cls, *, read_seconds: float, max_connections: int) -> "type[BoundedProtocol]":
        """Make the class that uvicorn makes connections of: it takes a class, and no options."""
        bounds = {"read_seconds": read_seconds, "max_connections": max_connections}
        return type(cls.__name__, (cls,), bounds)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, unless too many are open that are of use to somebody."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._make_room():
            self._end(503, TOO_MANY)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what arrived of a request."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, of which a part may be here already."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for a client that takes its answer more slowly than it is made, if it takes it."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on: the client has taken what was there."""
        _cancel(self._reader)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _cancel(self._deadline)
        _cancel(self._reader)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what isn't HTTP, as a problem like every other error."""
        self._end(400, msg)

    def _make_room(self) -> bool:
        """Close the connection that waits longest for the head of a request; False where none does.

        Anybody can open connections and send nothing on them: they must not shut out those who do.
        """
        waiting = [
            (one._deadline.when(), one)
            for one in self.connections
            if isinstance(one, BoundedProtocol)
            and one is not self
            and one._deadline is not None
            and one.conn.their_state is h11.IDLE
            and not one.transport.is_closing()
        ]
        if not waiting:
            return False
        _, oldest = min(waiting, key=itemgetter(0))
        if oldest.conn.trailing_data[0]:
            oldest._end(503, TOO_MANY)
        else:
            oldest.transport.close()
        return True

    def _watch(self) -> None:
        """Give the client its time for the rest of a request; one that is whole needs none."""
        if self.conn.their_state not in ARRIVING or self.transport.is_closing():
            _cancel(self._deadline)
            self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.read_seconds, self._expire)

    def _expire(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            self._watch()  # what was sent waits for us
        elif self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()
        else:
            self._end(408, "The request did not arrive in time (REQUEST_READ_SECONDS).")

    def _watch_reader(self, left: int | None = None) -> None:
        """Break off where as much is `left` of the answer as there was a while ago."""
        waiting = self.transport.get_write_buffer_size()
        if left is not None and waiting >= left:
            self.transport.abort()
        else:
            self._reader = self.loop.call_later(self.read_seconds, self._watch_reader, waiting)

    def _end(self, status: int, detail: str) -> None:
        """Say why, where nothing was answered yet, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            response = respond(status, detail, headers={"Connection": "close"})
            start = h11.Response(status_code=status, headers=response.raw_headers)
            with suppress(h11.LocalProtocolError):  # the answer to HEAD has no body
                for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
        if self.cycle is not None:
            # The application may be at work on what came; nobody hears it any more.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._watch()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
