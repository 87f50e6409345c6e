"""The contents of files, as they are read."""

from collections.abc import Callable, Iterator
from typing import Protocol
from uuid import UUID


class Content(Protocol):
    """Bytes of a file, made or read block by block."""

    @property
    def tag(self) -> str | None:
        """What names these bytes for ever; None while more may come."""

    @property
    def length(self) -> int | None:
        """How many bytes it has, if that is known."""

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`."""

    def measuring(self) -> Iterator[bytes]:
        """Do what is needed to learn the length, in steps that each yield an empty block."""


class PartContent(Content, Protocol):
    """What a batch has written so far."""

    @property
    def last_line(self) -> int:
        """How many lines there are now, those that were not asked for included."""


class OutputContents(Protocol):
    """Makes the outputs of batches."""

    def open(self, batch_id: UUID, part: str, *, after_lines: int = 0) -> PartContent:
        """Open an output behind so many lines. Raises `NotFound` where its run was deleted."""


class StoredContent:
    """The content of an uploaded file."""

    def __init__(
        self, read: Callable[[int], bytes], length: int, block_bytes: int, tag: str
    ) -> None:
        """`read` returns the block of a number."""
        self.tag = tag
        self.length = length
        self._read = read
        self._block_bytes = block_bytes

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`. Raises `NotFound` if it is deleted."""
        stop = self.length if stop is None else min(stop, self.length)
        for number in range(start // self._block_bytes, -(-stop // self._block_bytes)):
            first = number * self._block_bytes
            data = self._read(number)
            yield data[max(0, start - first) : stop - first]

    def measuring(self) -> Iterator[bytes]:
        """Its length is known."""
        return iter(())
