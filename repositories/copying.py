"""COPY BINARY: the quickest way into PostgreSQL, for items by the million and vectors."""

from typing import Any

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Its signature, no flags, no extension (PostgreSQL manual, COPY)."""
END = b"\xff\xff"
SENT_AT_ONCE = 1 << 20
"""Bytes. The driver's 8 KiB cost a call of Python for each."""


def copy_binary(cursor: Any, target: str, rows: bytes | memoryview) -> None:
    """Add rows, laid out as COPY BINARY reads them, to `target`: a table with its columns."""
    cursor.copy_expert(
        f"COPY {target} FROM STDIN (FORMAT binary)", _Stream(rows), size=SENT_AT_ONCE
    )


class _Stream:
    """A file of header, rows and end; the rows, which may be many megabytes, aren't copied."""

    def __init__(self, rows: bytes | memoryview) -> None:
        self._parts = [memoryview(HEADER), memoryview(rows), memoryview(END)]

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while self._parts and not self._parts[0]:
            del self._parts[0]
        if not self._parts:
            return b""
        part = self._parts[0]
        self._parts[0] = part[size:]
        return bytes(part[:size])
