"""Bodies that are sent from a file, a piece at a time, and again where a request is repeated."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx2

PIECE_BYTES = 256 * 1024


class Upload(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """A file as the body of a request. Each try reads it anew."""

    def __init__(self, path: Path, headers: Mapping[str, str]) -> None:
        self._path = path
        self.headers = {**headers, "Content-Length": str(path.stat().st_size)}

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
