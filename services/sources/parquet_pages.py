"""Computes what a group of rows of a Parquet file expands to, before any page is unpacked.

The description at the end of a file tells only the sizes of whole columns, and may lie. The header
of each page says what a reader will allocate for it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

BYTE_ARRAY, FIXED = "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"
BY_DICTIONARY = frozenset({2, 8})
"""Encodings of pages whose values stand in a dictionary before them."""
BY_PREFIX = 7
"""The encoding of texts that says how much of the one before each begins with."""
WIDTH = 16
"""Of numbers and times, and more."""
INDEX_WIDTH = 4
CODECS = {"SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}
MAX_DEPTH = 8
MAX_SKIPPED = 16_777_216
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
_INTEGERS = frozenset({4, 5, 6})
_HIGH, _LOW = 0x80, 0x7F


class BadPages(Exception):
    """The pages do not follow the format."""


@dataclass
class Leaf:
    """A column of numbers or texts in one group of rows. One row may hold many `values`."""

    path: str
    is_nested: bool
    packed: int = 0
    """Bytes in the file."""
    unpacked: int = 0
    values: int = 0
    largest_page: int = 0
    dictionary: int = 0
    """Bytes of the page that has it."""
    longest: int = 0
    """The longest value in it, or that its fixed width has."""
    value_bytes: float = 0.0
    """The most that one value takes on an average page."""

    @property
    def expanded(self) -> int:
        """Return the most bytes that all values can take."""
        return self.values * max(self.longest, WIDTH)


def read_leaf(file: BinaryIO, chunk: Any, column: Any, part_bytes: int) -> Leaf:
    """Read the headers of a column's pages. Raises `BadPages`.

    A dictionary of at most `part_bytes` is unpacked to find its longest text.
    """
    leaf = Leaf(column.path, column.max_repetition_level > 0)
    if chunk.physical_type == FIXED:
        leaf.longest = int(column.length)
    for header, offset in _pages(file, chunk):
        unpacked, packed = _number(header, 2), _number(header, 3)
        leaf.packed += packed
        leaf.unpacked += unpacked
        held = max(unpacked, packed)  # a reader holds both
        if 7 in header:
            leaf.dictionary = max(leaf.dictionary, held)
            if chunk.physical_type == BYTE_ARRAY and held <= part_bytes:
                file.seek(offset)
                page = _unpacked(file.read(packed), chunk.compression, unpacked)
                longest = unpacked if page is None else _longest(page, _number(header[7], 1))
                leaf.longest = max(leaf.longest, longest)
            continue
        leaf.largest_page = max(leaf.largest_page, held)
        told, place = (header[5], 2) if 5 in header else (header.get(8, {}), 4)
        values, encoding = _number(told, 1), _number(told, place)
        leaf.values += values
        each = unpacked / max(values, 1)
        if encoding in BY_DICTIONARY:
            each = max(leaf.longest, WIDTH)
        elif encoding == BY_PREFIX:
            each = unpacked
        leaf.value_bytes = max(leaf.value_bytes, each)
    return leaf


def _pages(file: BinaryIO, chunk: Any) -> Iterator[tuple[dict[int, Any], int]]:
    """Yield each page's header, and the offset where its content begins."""
    begins = [chunk.data_page_offset]
    if chunk.dictionary_page_offset:
        begins.append(chunk.dictionary_page_offset)
    offset = min(begins)
    end, found = offset + chunk.total_compressed_size, 0
    while offset < end and found < chunk.num_values:
        file.seek(offset)
        header = _struct(file.read)
        offset = file.tell()
        found += _number(header.get(5) or header.get(8) or {}, 1, 0)
        yield header, offset
        offset += _number(header, 3)


def _unpacked(page: bytes, compression: str, size: int) -> bytes | None:
    if compression == "UNCOMPRESSED":
        return page
    codec = CODECS.get(compression)
    if codec is None:
        return None
    try:
        unpacked: bytes = pa.decompress(page, size, codec, asbytes=True)
    except (OSError, pa.ArrowException):
        return None  # pyarrow says so when it reads it
    return unpacked


def _longest(page: bytes, count: int) -> int:
    """Return the length of the longest text; each text has its length before it."""
    longest = place = 0
    for _ in range(count):
        if place + 4 > len(page):
            break
        size = int.from_bytes(page[place : place + 4], "little")
        longest = max(longest, size)
        place += 4 + size
    return min(longest, len(page))


def _number(fields: dict[int, Any], place: int, default: int | None = None) -> int:
    value = fields.get(place, default)
    if not isinstance(value, int) or value < 0:
        raise BadPages
    return value


# Thrift's compact protocol, as far as headers of pages have it.


def _struct(read: Callable[[int], bytes], depth: int = 0) -> dict[int, Any]:
    if depth > MAX_DEPTH:
        raise BadPages
    fields: dict[int, Any] = {}
    place = 0
    while (head := _byte(read)) != 0:
        place = place + (head >> 4) if head >> 4 else _integer(read)
        fields[place] = _value(read, head & 0x0F, depth)
    return fields


def _value(read: Callable[[int], bytes], kind: int, depth: int) -> Any:
    if kind in {_TRUE, _FALSE}:
        return kind == _TRUE
    if kind in _INTEGERS:
        return _integer(read)
    if kind == _STRUCT:
        return _struct(read, depth + 1)
    if kind in {_LIST, _SET}:
        head = _byte(read)
        count = head >> 4 if head >> 4 != 0x0F else _unsigned(read)
        if count > MAX_SKIPPED:
            raise BadPages
        return [_value(read, head & 0x0F, depth + 1) for _ in range(count)]
    size = {_BYTE: 1, _DOUBLE: 8}.get(kind)
    if size is None and kind == _BINARY:
        size = _unsigned(read)
    if size is None or size > MAX_SKIPPED:
        raise BadPages
    return read(size)


def _byte(read: Callable[[int], bytes]) -> int:
    found = read(1)
    if not found:
        raise BadPages
    return found[0]


def _unsigned(read: Callable[[int], bytes]) -> int:
    value = shift = 0
    while True:
        byte = _byte(read)
        value |= (byte & _LOW) << shift
        if not byte & _HIGH:
            return value
        shift += 7
        if shift > 63:
            raise BadPages


def _integer(read: Callable[[int], bytes]) -> int:
    value = _unsigned(read)
    return (value >> 1) ^ -(value & 1)
