"""Finds where records of a CSV file begin and end, for records of any length."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache

QUOTE, COMMA = ord('"'), b","
_IN_QUOTES = rb'[^"]*+(?:""[^"]*+)*+'
REST_IN_QUOTES = re.compile(_IN_QUOTES)


@dataclass(frozen=True)
class Grammar:
    """The patterns of records, for one separator."""

    separator: bytes
    cells: re.Pattern[bytes]
    """Matches whole cells, each with the separator after it."""
    whole_record: re.Pattern[bytes]
    """Matches most records at once, without a walk through their cells."""

    @classmethod
    @cache
    def of(cls, separator: bytes) -> "Grammar":
        """Build the patterns for a separator of one byte."""
        sign = re.escape(separator)
        cell = rb'(?:"' + _IN_QUOTES + rb'"|[^"' + sign + rb"]*+)"
        whole = cell + b"(?:" + sign + cell + rb")*+\r?\n"
        return cls(separator, re.compile(b"(?:" + cell + sign + b")*+"), re.compile(whole))


@dataclass(frozen=True, slots=True)
class CsvRecord:
    """One record, which may have several lines."""

    position: int
    """The line on which it starts, from 1."""
    content: bytes | None
    """The record without its last line end. None: it was longer than the bound and not kept."""
    complete: bool = True
    """Whether its last quote was closed before the file ended."""


class _At(Enum):
    FIELD_START = auto()
    PLAIN = auto()
    QUOTED = auto()
    AFTER_QUOTE = auto()
    """After a quote inside quotes: it ends them, or is the first half of an escaped quote."""


def csv_records(
    blocks: Iterable[bytes], limit: int, separator: bytes = COMMA
) -> Iterator[CsvRecord]:
    """Cut a stream into records as the csv module does, but keep none longer than `limit` bytes.

    The csv module would read an unclosed quote and the rest of the file into memory. When it gives
    up in the middle of a record, it reads what follows as the next record.
    """
    grammar = Grammar.of(separator)
    at = _At.FIELD_START
    line = begin = 1
    held = bytearray()  # not a list: a quoted cell may hold millions of short lines
    size = 0
    for block in blocks:
        for fragment in _fragments(block):
            ends = fragment.endswith(b"\n")
            if at is _At.FIELD_START and grammar.whole_record.fullmatch(fragment):
                at = _At.PLAIN
            else:
                at = _after(at, fragment.removesuffix(b"\n"), grammar)
            size += len(fragment)
            if size <= limit:
                held += fragment
            else:
                held.clear()
            if not ends:
                continue
            line += 1
            if at is _At.QUOTED:
                continue
            yield CsvRecord(begin, bytes(held).removesuffix(b"\n") if size <= limit else None)
            at, begin, size = _At.FIELD_START, line, 0
            held.clear()
    if size:
        content = bytes(held) if size <= limit else None
        yield CsvRecord(begin, content, complete=at is not _At.QUOTED)


def _fragments(block: bytes) -> Iterator[bytes]:
    """Cut a block after each line end."""
    *lines, rest = block.split(b"\n")
    for line in lines:
        yield line + b"\n"
    if rest:
        yield rest


def _after(at: _At, fragment: bytes, grammar: Grammar) -> _At:
    """Return the state after a fragment of a line."""
    place, end = 0, len(fragment)
    while place < end:
        if at is _At.QUOTED:
            place = _end_of_match(REST_IN_QUOTES, fragment, place)
            if place == end:
                return at
            at = _At.AFTER_QUOTE
        elif at is _At.PLAIN:
            place = fragment.find(grammar.separator, place)
            if place == -1:
                return at
            at = _At.FIELD_START
        elif at is _At.AFTER_QUOTE:
            after = fragment[place : place + 1]
            at = _At.FIELD_START if after == grammar.separator else _At.PLAIN
            at = _At.QUOTED if after == b'"' else at
        else:
            place = _end_of_match(grammar.cells, fragment, place)
            if place == end:
                return at
            at = _At.QUOTED if fragment[place] == QUOTE else _At.PLAIN
        place += 1
    return at


def _end_of_match(pattern: re.Pattern[bytes], fragment: bytes, place: int) -> int:
    found = pattern.match(fragment, place)
    return place if found is None else found.end()
