"""Opens a source and yields its bytes: decompressed, in UTF-8, without a byte order mark."""

import codecs
import gzip
import io
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, BinaryIO

import pyarrow as pa

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.reading import SourceBounds
from promptstack.services.text import printable_path

MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
"""Byte order marks, the longer ones first: no text begins with the NUL that a shorter one left."""
NULS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}
"""Which of the first four bytes are NUL where there is no mark: no text in UTF-8 has any."""


@dataclass(frozen=True)
class Encoding:
    """How a text is encoded."""

    name: str
    mark: bytes = b""
    """The byte order mark, which is not part of the text."""


def encoding_of(start: bytes) -> Encoding:
    """Detect the encoding by at most four first bytes; UTF-8 unless they say otherwise."""
    mark = next((mark for mark in MARKS if start.startswith(mark)), None)
    if mark is not None:
        return Encoding(MARKS[mark], mark)
    return Encoding(NULS.get(tuple(byte == 0 for byte in start[:4]), "utf-8"))


BLOCK_BYTES = 256 * 1024
BZ2_BLOCKS = (b"1AY&", b"\x17rE8")
"""The first bytes of a block, and those of an empty file's end."""
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([0x50 + kind]) + b"\x2a\x4d\x18": "zstd" for kind in range(16)},  # a frame to skip
    **{b"BZh%d%s" % (level, block): "bz2" for level in range(1, 10) for block in BZ2_BLOCKS},
}
"""Compressions by their first bytes."""
ARCHIVES = {
    b"PK\x03\x04": "a zip archive or an Excel workbook; unpack it, or save its table as CSV",
    b"\xfd7zX": "xz data; unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save its table as CSV",
}
SUFFIXES = {
    **dict.fromkeys((".gz", ".gzip"), "gzip"),
    **dict.fromkeys((".zst", ".zstd"), "zstd"),
    ".bz2": "bz2",
}
MAGIC_BYTES = 8
UNBOUNDED = SourceBounds()
"""Its file is one of those who run the server."""

Read = Callable[[int], bytes]


@dataclass(frozen=True)
class Origin:
    """Where bytes come from."""

    path: Path | None
    """None: standard input, or the stream."""
    stream: BinaryIO | None = None
    bounds: SourceBounds = UNBOUNDED

    @property
    def name(self) -> str:
        """The name for the beginning of a sentence."""
        if self.path is not None:
            return printable_path(self.path)
        return "Standard input" if self.stream is None else "The stream"

    @property
    def suffix(self) -> str:
        """The suffix that tells the format, without a compression's; may be empty."""
        name = PurePath(self._file_name())
        if name.suffix.lower() in SUFFIXES:
            name = PurePath(name.stem)
        return name.suffix.lower()

    @property
    def compression(self) -> str | None:
        """The compression that the name tells, if any."""
        return SUFFIXES.get(PurePath(self._file_name()).suffix.lower())

    @contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """Open the file and close it at the end. A stream of the caller stays open."""
        if self.path is None:
            yield self.stream or sys.stdin.buffer
            return
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise InvalidInput(f"{self.name} can't be read: {error.strerror}.") from error
        with file:
            yield file

    def _file_name(self) -> str:
        name = getattr(self.stream, "name", "") if self.path is None else str(self.path)
        return name if isinstance(name, str) else ""  # the name of a pipe is a number

    def check(self, done: int, began: float) -> None:
        """Raise `InvalidInput` where it has more bytes, unpacked, or takes longer than it may."""
        limit, seconds = self.bounds.unpacked_bytes, self.bounds.seconds
        if limit is not None and done > limit:
            raise InvalidInput(
                f"{self.name} has more than {limit:,} bytes, unpacked (MAX_UNPACKED_BYTES); hand "
                "it in as several runs."
            )
        if seconds is not None and time.monotonic() - began > seconds:
            raise InvalidInput(
                f"{self.name} could not be read in {seconds:g} s (UPLOAD_SECONDS); hand it in as "
                "several runs."
            )


def byte_blocks(origin: Origin) -> Iterator[bytes]:
    """Yield the content of the source, decompressed and in UTF-8. Raises `InvalidInput`."""
    with origin.opened() as stream:
        head = _guarded(origin, _reader(stream))
        start = _at_least(head, MAGIC_BYTES)
        compression = _compression(origin, start)
        read = _joined(start, head)
        if compression is not None:
            read = _guarded(origin, _unpacked(read, compression), compression)
            start = _at_least(read, MAGIC_BYTES)
            read = _joined(start, read)
            if _known(start, COMPRESSIONS) is not None:
                raise InvalidInput(f"{origin.name} is compressed more than once; unpack it first.")
        archive = _known(start, ARCHIVES)
        if archive is not None:
            raise InvalidInput(f"{origin.name} is {archive}.")
        encoding = encoding_of(start)
        if encoding.mark:
            _at_least(read, len(encoding.mark))
        if encoding.name != "utf-8":
            read = _in_utf_8(origin, read, encoding.name)
        done, began = 0, time.monotonic()
        while block := read(BLOCK_BYTES):
            done += len(block)
            origin.check(done, began)
            yield block


def _unpacked(read: Read, compression: str) -> Read:
    if compression == "gzip":  # zeros may follow, as on tapes; pyarrow would refuse them
        return gzip.GzipFile(fileobj=_Readable(read)).read1
    stream = pa.CompressedInputStream(pa.PythonFile(_Readable(read), mode="r"), compression)
    unpacked: Read = stream.read
    return unpacked


def _in_utf_8(origin: Origin, read: Read, encoding: str) -> Read:
    """Re-encode as UTF-8. Half a surrogate pair passes through, so that its record is refused."""
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    done = 0

    def encoded(size: int) -> bytes:
        nonlocal done
        while True:
            block = read(size)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"{origin.name} can't be read on after {done:,} bytes: it is not all "
                    f"{encoding[:6].upper()}."
                ) from error
            done += len(block)
            if text or not block:
                return text.encode("utf-8", "surrogatepass")

    return encoded


def _reader(stream: BinaryIO) -> Read:
    # `read1` returns what a pipe has now and does not wait for a whole block.
    read: Read = getattr(stream, "read1", stream.read)
    return read


def _guarded(origin: Origin, read: Read, compression: str | None = None) -> Read:
    """Turn errors of reading into sentences that say how many bytes were read."""
    done = 0

    def guarded(size: int) -> bytes:
        nonlocal done
        try:
            block = read(size) or b""
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
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
        return "it ended with an error"  # the stream is the caller's own and may raise anything
    is_cut = isinstance(error, EOFError) or "runcated" in str(error)
    return f"its {compression} data is {'cut off' if is_cut else 'damaged'}"


def _at_least(read: Read, size: int) -> bytes:
    found = b""
    while len(found) < size and (more := read(size - len(found))):
        found += more
    return found


def _joined(start: bytes, read: Read) -> Read:
    rest = io.BytesIO(start)
    return lambda size: rest.read(size) or read(size)


def _known(start: bytes, kinds: Mapping[bytes, str]) -> str | None:
    return next((name for magic, name in kinds.items() if start.startswith(magic)), None)


def _compression(origin: Origin, start: bytes) -> str | None:
    found = _known(start, COMPRESSIONS)
    if origin.compression not in {None, found}:
        raise InvalidInput(
            f"{origin.name} is named as {origin.compression} data and is none; "
            "rename it or compress it again."
        )
    return found


class _Readable(io.RawIOBase):
    """A file object around a function, for pyarrow and gzip."""

    def __init__(self, read: Read) -> None:
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._read(len(buffer))
        buffer[: len(block)] = block
        return len(block)
