"""HTTP/1.1 by uvicorn, with a deadline for every request and a limit of connections.

uvicorn closes only connections that are idle between two requests. Without a deadline, a request
whose rest never comes would stay open for ever, and so would a connection without a request.
"""

import asyncio
from contextlib import suppress
from operator import itemgetter
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from promptstack.api.http.problems import respond
from promptstack.api.http.transfers import READ_SECONDS

TOO_MANY = "Too many connections are open (MAX_CONNECTIONS); try again later."
ARRIVING = (h11.IDLE, h11.SEND_BODY)
"""States of a client that has not sent its whole request yet."""


class BoundedProtocol(H11Protocol):
    """One connection. A request that does not arrive in time is ended."""

    read_seconds: float
    max_connections: int

    def __init__(self, config: Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._began = 0.0
        self._came = 0.0
        self._reader: asyncio.TimerHandle | None = None

    @classmethod
    def bounded_by(cls, *, read_seconds: float, max_connections: int) -> "type[BoundedProtocol]":
        """Return a class with these bounds: uvicorn takes a class, and no options for it."""
        bounds = {"read_seconds": read_seconds, "max_connections": max_connections}
        return type(cls.__name__, (cls,), bounds)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse it where too many are in use."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections and not self._make_room():
            self._end(503, TOO_MANY)
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what arrived of a request."""
        self._came = self.loop.time()
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Go on to the next request, a part of which may be here already."""
        super().on_response_complete()
        self._watch()

    def pause_writing(self) -> None:
        """Wait for a client that reads more slowly than the answer is made, as long as it reads."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """Go on: the client has read what was there."""
        _cancel(self._reader)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        _cancel(self._deadline)
        _cancel(self._reader)
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, with a problem."""
        self._end(400, msg)

    def _make_room(self) -> bool:
        """Close the connection that waits longest for a request. Returns False where none waits.

        Connections that send nothing must not shut out those that do.
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
        """Start the deadline of a request that is not whole; stop it for one that is."""
        if self.conn.their_state not in ARRIVING or self.transport.is_closing():
            _cancel(self._deadline)
            self._deadline = None
        elif self._deadline is None:
            self._began = self.loop.time()
            self._deadline = self.loop.call_later(self.read_seconds, self._expire)

    def _has_longer(self) -> bool:
        """Whether an upload is under way that has more time, and something of it has come."""
        now = self.loop.time()
        longer = self.scope["state"].get(READ_SECONDS) if self._is_in_request() else None
        if longer is None or now - self._came >= self.read_seconds:
            return False
        return bool(now - self._began < longer)

    def _is_in_request(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.scope is not None

    def _expire(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            self._watch()  # the rest is here and waits to be read
        elif self._has_longer():
            self._deadline = self.loop.call_later(self.read_seconds, self._expire)
        elif self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]:
            self.transport.close()
        else:
            self._end(408, "The request did not arrive in time (REQUEST_READ_SECONDS).")

    def _watch_reader(self, left: int | None = None) -> None:
        """Break off where as much of the answer is `left` as at the last look."""
        waiting = self.transport.get_write_buffer_size()
        if left is not None and waiting >= left:
            self.transport.abort()
        else:
            self._reader = self.loop.call_later(self.read_seconds, self._watch_reader, waiting)

    def _end(self, status: int, detail: str) -> None:
        """Answer why, where no answer has begun, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            response = respond(status, detail, headers={"Connection": "close"})
            start = h11.Response(status_code=status, headers=response.raw_headers)
            with suppress(h11.LocalProtocolError):  # the answer to HEAD has no body
                for event in (start, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event))
        if self.cycle is not None:
            # The application may still work on the request. Its answer is not sent.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()
        self._watch()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
