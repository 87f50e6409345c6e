"""Where a record of a CSV file begins and ends, for records of any length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

QUOTE, COMMA = b'"', b","


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One record, which may have several lines."""

    position: int
    """The line that it starts on, from 1."""
    content: bytes | None
    """Without the end of its last line. None: it was longer than the bound and was let go."""
    complete: bool = True
    """Whether its last quote was closed before the file ended."""


class _At(Enum):
    FIELD_START = auto()
    PLAIN = auto()
    QUOTED = auto()
    AFTER_QUOTE = auto()
    """After a quote within quotes: the end of the quotes, or the first of two that mean one."""


_OUTSIDE = frozenset({_At.FIELD_START, _At.PLAIN})


def csv_records(blocks: Iterable[bytes], limit: int) -> Iterator[CsvRecord]:
    """Cut a stream into records as the csv module would, but keep none longer than `limit` bytes.

    The csv module would read a quote that is never closed, and with it the rest of the file, into
    memory; and what it gives up on in the middle it takes for the next record.
    """
    at = _At.FIELD_START
    line = begin = 1
    held: list[bytes] = []
    size = 0
    for block in blocks:
        for fragment in _fragments(block):
            ends = fragment.endswith(b"\n")
            if at in _OUTSIDE and QUOTE not in fragment:
                at = _At.PLAIN
            else:
                at = _after(at, fragment.removesuffix(b"\n"))
            size += len(fragment)
            if size <= limit:
                held.append(fragment)
            else:
                held.clear()
            if not ends:
                continue
            line += 1
            if at is _At.QUOTED:
                continue
            yield CsvRecord(begin, b"".join(held).removesuffix(b"\n") if size <= limit else None)
            at, begin, size = _At.FIELD_START, line, 0
            held.clear()
    if size:
        content = b"".join(held) if size <= limit else None
        yield CsvRecord(begin, content, complete=at is not _At.QUOTED)


def _fragments(block: bytes) -> Iterator[bytes]:
    """Cut after each end of a line, and nowhere else."""
    *lines, rest = block.split(b"\n")
    for line in lines:
        yield line + b"\n"
    if rest:
        yield rest


def _after(at: _At, fragment: bytes) -> _At:
    """Tell where a fragment of a line leaves us."""
    place = 0
    while place < len(fragment):
        if at in {_At.QUOTED, _At.PLAIN}:
            sign, then = (QUOTE, _At.AFTER_QUOTE) if at is _At.QUOTED else (COMMA, _At.FIELD_START)
            found = fragment.find(sign, place)
            if found == -1:
                return at
            at, place = then, found + 1
            continue
        sign = fragment[place : place + 1]
        if sign == QUOTE:
            at = _At.QUOTED
        elif sign == COMMA:
            at = _At.FIELD_START
        else:
            at = _At.PLAIN
        place += 1
    return at
