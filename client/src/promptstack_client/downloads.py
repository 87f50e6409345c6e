"""Files that the server sends: written as they come, and gone on with after a broken connection."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Self

import httpx2

from promptstack_client.calls import Asked, Call, Route
from promptstack_client.errors import UnexpectedAnswer
from promptstack_client.feeds import Bytes, Feed, Pieces
from promptstack_client.models.runs import Download


class DownloadFeed(Feed[Download]):
    """One file. It has its name only when all of it is there."""

    def __init__(self, route: Route[None], asked: Asked, path: Path) -> None:
        self._route = route
        self._asked = asked
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._tag: str | None = None
        self._file: BinaryIO
        self.result: Download

    def __enter__(self) -> Self:
        self._file = self._part.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self.ended:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)

    def call(self) -> Call[None]:
        """Ask for all of it, or for what is not here yet where it can't have changed."""
        # Packed on the way, its bytes would be others than those that a range counts.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self._tag and self._file.tell():
            headers |= {"Range": f"bytes={self._file.tell()}-", "If-Range": self._tag}
        asked = Asked(self._asked.path, self._asked.query, headers)
        return Call.of(self._route, asked)

    def pieces(self, response: httpx2.Response) -> Pieces:
        """The bytes that are not here yet."""
        if response.status_code != httpx2.codes.PARTIAL_CONTENT:
            self._file.seek(0)
            self._file.truncate()
        elif not response.headers.get("Content-Range", "").startswith(
            f"bytes {self._file.tell()}-"
        ):
            raise UnexpectedAnswer("The server sent another part of the file than was asked for.")
        self._tag = response.headers.get("ETag")
        next_after = response.headers.get("X-Next-After")
        self.result = Download(
            path=self._path,
            is_complete=response.headers.get("X-Incomplete") != "true",
            next_after=None if next_after is None else int(next_after),
        )
        return Bytes(response)

    def take(self, piece: bytes) -> Iterator[Download]:
        """Write what has come."""
        self._file.write(piece)
        yield from ()

    def close(self) -> None:
        """All is there: the library has compared the length."""
        self.ended = True
