"""The bytes of a source: opened, decompressed, without their byte order mark."""

import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from services.errors import InvalidInput

BLOCK_BYTES = 256 * 1024
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""By the bytes that such data starts with."""
SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd"}
MAGIC_BYTES = 4
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class Origin:
    """Where bytes come from."""

    path: Path | None
    """None: standard input, or the stream."""
    stream: BinaryIO | None = None

    @property
    def name(self) -> str:
        """What to call it in a sentence that begins with it."""
        if self.path is not None:
            return str(self.path)
        return "Standard input" if self.stream is None else "The stream"

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, without that of a compression; may be empty."""
        name = PurePath(self._file_name())
        if name.suffix.lower() in SUFFIXES:
            name = PurePath(name.stem)
        return name.suffix.lower()

    @property
    def compression(self) -> str | None:
        """What the name says of it."""
        return SUFFIXES.get(PurePath(self._file_name()).suffix.lower())

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open a file, and close it in the end; a stream of the caller's stays open."""
        if self.path is None:
            yield self.stream or sys.stdin.buffer
            return
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise InvalidInput(f"{self.path} can't be read: {error.strerror}.") from error
        with file:
            yield file

    def _file_name(self) -> str:
        name = getattr(self.stream, "name", "") if self.path is None else str(self.path)
        return name if isinstance(name, str) else ""  # a pipe's is a number


def byte_blocks(origin: Origin) -> Iterator[bytes]:
    """Yield what the source holds, decompressed. Raises `InvalidInput` that says what is wrong."""
    with origin.opened() as stream:
        head = _guarded(origin, _reader(stream))
        start = _at_least(head, MAGIC_BYTES)
        compression = _compression(origin, start)
        read = _joined(start, head)
        if compression is not None:
            inflated = pa.CompressedInputStream(
                pa.PythonFile(_Readable(read), mode="r"), compression
            )
            read = _guarded(origin, inflated.read, compression)
            start = _at_least(read, MAGIC_BYTES)
            read = _joined(start, read)
        if start.startswith(UTF_16):
            raise InvalidInput(f"{origin.name} is UTF-16; convert it to UTF-8 first.")
        if start.startswith(BYTE_ORDER_MARK):
            read(len(BYTE_ORDER_MARK))
        while block := read(BLOCK_BYTES):
            yield block


def _reader(stream: BinaryIO) -> Read:
    # What a pipe has now, and not first a whole block: records are worked on as they come.
    read: Read = getattr(stream, "read1", stream.read)
    return read


def _guarded(origin: Origin, read: Read, compression: str | None = None) -> Read:
    """Turn the errors of reading into sentences that say how far it came."""
    done = 0

    def guarded(size: int) -> bytes:
        nonlocal done
        try:
            block = read(size) or b""
        except (OSError, EOFError, pa.ArrowException) as error:
            why = getattr(error, "strerror", None) or _damage(error, compression)
            raise InvalidInput(
                f"{origin.name} can't be read on after {done:,} bytes: {why}."
            ) from error
        if not isinstance(block, bytes):
            raise InvalidInput(f"{origin.name} gives text, not bytes; open it in binary mode.")
        done += len(block)
        return block

    return guarded


def _damage(error: Exception, compression: str | None) -> str:
    if compression is None:
        return "it ended with an error"  # a stream of the caller's, which may be of any kind
    return f"its {compression} data is {'cut off' if 'runcated' in str(error) else 'damaged'}"


def _at_least(read: Read, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := read(size - len(found))):
        found += more
    return found


def _joined(start: bytes, read: Read) -> Read:
    rest = io.BytesIO(start)
    return lambda size: rest.read(size) or read(size)


def _compression(origin: Origin, start: bytes) -> str | None:
    found = next((name for magic, name in COMPRESSIONS.items() if start.startswith(magic)), None)
    if origin.compression not in {None, found}:
        raise InvalidInput(
            f"{origin.name} is named as {origin.compression} data and is none; "
            "rename it or compress it again."
        )
    return found


class _Readable(io.RawIOBase):
    """A file object around a function, as pyarrow wants one."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
