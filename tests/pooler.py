"""A pooler in front of PostgreSQL, as PgBouncer is one that pools transactions.

Each transaction gets another of its connections to PostgreSQL than the one before, so that what a
client leaves in a session, others find.
"""

import secrets
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from sqlalchemy import make_url

from tests.processes import join

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102
CONNECTIONS = 4


@dataclass
class Upstream:
    """A connection to PostgreSQL."""

    link: socket.socket
    greeting: list[bytes] = field(default_factory=list)
    key: bytes = b""


class Pooler:
    """Takes clients of one database on `port`."""

    def __init__(self, url: str) -> None:
        """Pool connections to the PostgreSQL at this URL, which asks for no password."""
        self._url = make_url(url)
        host, port = self._url.query["host"], self._url.query["port"]
        self._socket = f"{host}/.s.PGSQL.{port}"
        self._free: deque[Upstream] = deque()
        self._is_free = threading.Condition()
        self._busy: dict[bytes, Upstream] = {}
        """By the key that a client may cancel with."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        place = {"host": "127.0.0.1", "port": self._listener.getsockname()[1], "query": {}}
        self.url = self._url.set(**place).render_as_string(hide_password=False)

    def serve(self) -> None:
        """Serve until `close`."""
        self._free.extend(self._connect() for _ in range(CONNECTIONS))
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(client,), daemon=True).start()

    def close(self) -> None:
        """Take no more clients, and close all connections to PostgreSQL."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for upstream in (*self._free, *self._busy.values()):
            upstream.link.close()

    def _connect(self) -> Upstream:
        link = socket.socket(socket.AF_UNIX)
        link.connect(self._socket)
        names = (b"user", self._url.username, b"database", self._url.database, b"")
        said = b"\0".join(n if isinstance(n, bytes) else str(n).encode() for n in names) + b"\0"
        link.sendall(struct.pack("!ii", len(said) + 8, 196608) + said)
        upstream = Upstream(link)
        while (message := _message(link))[:1] != b"Z":
            assert message[:1] in b"RSK", message
            if message[:1] == b"K":
                upstream.key = message[5:]
            else:
                upstream.greeting.append(message)
        return upstream

    def _talk(self, client: socket.socket) -> None:
        key = secrets.token_bytes(8)
        with suppress(OSError), client:
            if not self._greet(client, key):
                return
            try:
                while (message := _message(client))[:1] != b"X":
                    self._hand_on(client, key, message)
            finally:
                # A client that is gone in the middle of a transaction.
                upstream = self._busy.pop(key, None)
                if upstream is not None:
                    upstream.link.close()
                    self._give_back(self._connect())

    def _greet(self, client: socket.socket, key: bytes) -> bool:
        while True:
            (length,) = struct.unpack("!i", _read(client, 4))
            said = _read(client, length - 4)
            (code,) = struct.unpack("!i", said[:4])
            if code in {SSL_REQUEST, GSS_REQUEST}:
                client.sendall(b"N")
            elif code == CANCEL_REQUEST:
                self._cancel(said[4:])
                return False
            else:
                break
        greeting = b"".join(self._free[0].greeting)
        client.sendall(greeting + b"K" + struct.pack("!i", 12) + key + b"Z\0\0\0\x05I")
        return True

    def _cancel(self, key: bytes) -> None:
        upstream = self._busy.get(key)
        if upstream is not None:
            with socket.socket(socket.AF_UNIX) as link:
                link.connect(self._socket)
                link.sendall(
                    struct.pack("!ii", 8 + len(upstream.key), CANCEL_REQUEST) + upstream.key
                )
                link.recv(1)

    def _hand_on(self, client: socket.socket, key: bytes, message: bytes) -> None:
        if key not in self._busy:
            with self._is_free:
                self._is_free.wait_for(lambda: self._free)
                self._busy[key] = self._free.popleft()
        upstream = self._busy[key]
        upstream.link.sendall(message)
        if message[:1] == b"d":
            return  # of a COPY, of which PostgreSQL says nothing until its end
        assert message[:1] in b"Qcf", f"not of the simple protocol: {message[:1]!r}"
        while (answer := _message(upstream.link))[:1] not in b"ZG":
            client.sendall(answer)
        if answer[:1] == b"Z" and answer[5:] == b"I":
            del self._busy[key]
            self._give_back(upstream)
        client.sendall(answer)

    def _give_back(self, upstream: Upstream) -> None:
        with self._is_free:
            self._free.append(upstream)
            self._is_free.notify()


@contextmanager
def pooler_before(url: str) -> Iterator[Pooler]:
    """Pool connections to the database at `url`."""
    pooler = Pooler(url)
    thread = threading.Thread(target=pooler.serve, daemon=True)
    thread.start()
    try:
        yield pooler
    finally:
        pooler.close()
        join(thread)


def _message(link: socket.socket) -> bytes:
    head = _read(link, 5)
    return head + _read(link, struct.unpack("!i", head[1:])[0] - 4)


def _read(link: socket.socket, length: int) -> bytes:
    read = bytearray()
    while len(read) < length:
        some = link.recv(length - len(read))
        if not some:
            raise ConnectionResetError
        read += some
    return bytes(read)
