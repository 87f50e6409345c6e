"""Reads server-sent events, as they come."""

import re
from codecs import BOM_UTF8
from collections.abc import Iterator

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Cuts bytes into events and yields the data of each; names, ids and comments are left out."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        """The parts of the line that is not whole yet: it may be long, and is put together once."""
        self._data: list[bytes] = []
        self._start: bytes | None = b""
        """The first bytes, until it is known whether they are a mark of the encoding."""
        self._ended_by_cr = False

    def feed(self, part: bytes) -> Iterator[str]:
        """Take the next bytes. Yields the data of the events that are whole now."""
        if self._start is not None:
            self._start += part
            if len(self._start) < len(BOM_UTF8):
                return
            part, self._start = self._start.removeprefix(BOM_UTF8), None
        if self._ended_by_cr and part:
            part = part.removeprefix(b"\n")
        self._ended_by_cr = part.endswith(b"\r") or (self._ended_by_cr and not part)
        first, *others = _LINE_END.split(part)
        self._line.append(first)
        for rest in others:
            yield from self._take(b"".join(self._line))
            self._line = [rest]

    def end(self) -> Iterator[str]:
        """There is no more. Some servers leave out the empty line after the last event."""
        yield from self._take(b"".join([self._start or b"", *self._line]))
        self._line = []
        yield from self._take(b"")

    def _take(self, line: bytes) -> Iterator[str]:
        if not line and self._data:
            data, self._data = b"\n".join(self._data), []
            yield data.decode(errors="replace")
        elif line.startswith(b"data:"):
            self._data.append(line.removeprefix(b"data:").removeprefix(b" "))
