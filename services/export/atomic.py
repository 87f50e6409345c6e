"""Writes files that appear whole or not at all."""

import gzip
import io
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import pyarrow as pa

BUFFER_BYTES = 1_048_576
GZIP_LEVEL = 4
"""The digits of vectors take five times as long at level 9, Python's and pyarrow's own, and are
five percent smaller then."""


def _gzip(file: BinaryIO) -> BinaryIO:
    packed = gzip.GzipFile(fileobj=file, mode="wb", compresslevel=GZIP_LEVEL, mtime=0)
    return io.BufferedWriter(packed, BUFFER_BYTES)


def _zstd(file: BinaryIO) -> BinaryIO:
    stream: BinaryIO = pa.CompressedOutputStream(pa.PythonFile(file, mode="w"), "zstd")
    return stream


COMPRESSIONS: dict[str, Callable[[BinaryIO], BinaryIO]] = {".gz": _gzip, ".zst": _zstd}
"""By suffix. Closing such a stream writes its last bytes."""


class AtomicFiles:
    """Writes files under temporary names, and renames them when all are complete.

    If the block ends with an exception, the new files are removed and the old ones stay.

    """

    def __init__(self) -> None:
        self._files: dict[Path, tuple[Path, BinaryIO]] = {}
        """By where it goes: the temporary name, and the open file."""
        self._streams: list[BinaryIO] = []
        """To be closed before the files below them."""
        self._unwanted: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._discard()

    def create(self, path: Path) -> BinaryIO:
        """Open a file that will become `path`; it is compressed if the suffix says so."""
        path = path.resolve()  # what a link points to is replaced, not the link
        temporary = path.with_name(f".{path.name:.100}.{secrets.token_hex(8)}.tmp")
        file = temporary.open("xb", buffering=BUFFER_BYTES)
        self._files[path] = temporary, file
        open_stream = COMPRESSIONS.get(path.suffix.lower())
        if open_stream is None:
            return file
        stream = open_stream(file)
        self._streams.append(stream)
        return stream

    def remove(self, path: Path) -> None:
        """Remove an old file once the new ones are in place."""
        self._unwanted.append(path)

    def _commit(self) -> None:
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        for temporary, file in self._files.values():
            file.close()
            _sync(temporary)
        for path in list(self._files):
            temporary, _ = self._files[path]
            temporary.replace(path)
            del self._files[path]
            _sync(path.parent)
        for path in self._unwanted:
            path.unlink(missing_ok=True)

    def _discard(self) -> None:
        # What can't be written out any more, as the disk is full, must not keep it from going.
        for stream in self._streams:
            with suppress(OSError, pa.ArrowException):
                stream.close()
        for temporary, file in self._files.values():
            with suppress(OSError):
                file.close()
            temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
