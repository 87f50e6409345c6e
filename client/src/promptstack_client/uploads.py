"""Forms with a file: sent a piece at a time, and anew when a request is repeated."""

import asyncio
import secrets
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from io import SEEK_END
from typing import Any, BinaryIO

import httpx2
import pydantic_core

PIECE_BYTES = 256 * 1024


class Upload(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """The body of a request: a form with one file, and other fields. It closes the file."""

    def __init__(self, file: BinaryIO, name: str, fields: Mapping[str, Any]) -> None:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Disposition: form-data; name="
        parts = [f'{head}"{field}"\r\n\r\n{_text_of(value)}\r\n' for field, value in fields.items()]
        parts.append(f'{head}"file"; filename="{_quoted(name)}"\r\n\r\n')
        self._before = "".join(parts).encode()
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._file = file
        size = file.seek(0, SEEK_END) + len(self._before) + len(self._after)
        self.headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(size),
        }
        weakref.finalize(self, file.close)

    def __iter__(self) -> Iterator[bytes]:
        yield self._before
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            yield piece
        yield self._after

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._before
        self._file.seek(0)
        while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
            yield piece
        yield self._after


def _quoted(name: str) -> str:
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _text_of(value: object) -> str:
    """A field as text; lists and objects as JSON."""
    return value if isinstance(value, str) else pydantic_core.to_json(value).decode()
