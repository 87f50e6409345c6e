"""Reads server-sent events, as they come."""

import re
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Cuts bytes into events and yields the data of each; names, ids and comments are left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._is_first = True

    def feed(self, part: bytes) -> Iterator[str]:
        """Take the next bytes. Yields the data of the events that are whole now."""
        held = self._rest + part
        if self._is_first and len(held) >= len(b"\xef\xbb\xbf"):
            held, self._is_first = held.removeprefix(b"\xef\xbb\xbf"), False
        # The \n of a \r\n may still be to come.
        end = b"\r" if held.endswith(b"\r") else b""
        *lines, rest = _LINE_END.split(held.removesuffix(b"\r") if end else held)
        self._rest = rest + end
        for line in lines:
            yield from self._take(line)

    def end(self) -> Iterator[str]:
        """There is no more. Some servers leave out the empty line after the last event."""
        rest, self._rest = self._rest.removesuffix(b"\r"), b""
        yield from self._take(rest)
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[str]:
        if not line and self._data:
            data, self._data = b"\n".join(self._data), []
            yield data.decode(errors="replace")
        elif line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
