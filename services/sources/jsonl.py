"""Reads records from JSON Lines, and texts from plain lines."""

import re
from collections.abc import Iterable, Iterator
from json import JSONDecodeError

from promptstack.services.sources.reading import BadInput, Fault, Input, Reading
from promptstack.services.sources.records import RecordCheck, kind_of
from promptstack.services.text import shown_name
from promptstack.services.validation.json_text import NotExact, load_json


def physical_lines(blocks: Iterable[bytes], limit: int) -> Iterator[tuple[int, bytes | None]]:
    r"""Yield each line's number, from 1, and the line without its `\n`.

    A line of more than `limit` bytes is yielded as None and not kept in memory: it may be the rest
    of a file that is no text at all.
    """
    number = 0
    held = bytearray()  # not a list: a pipe may give a byte at a time
    size = 0
    for block in blocks:
        first, *others = block.split(b"\n")
        size += len(first)
        if size > limit:
            held.clear()
        else:
            held += first
        if not others:
            continue
        number += 1
        yield number, bytes(held) if size <= limit else None
        last = others.pop()
        if len(block) <= limit:
            yield from enumerate(others, number + 1)
        else:
            for at, line in enumerate(others, number + 1):
                yield at, line if len(line) <= limit else None
        number += len(others)
        size = len(last)
        held = bytearray(last if size <= limit else b"")
    if size:
        yield number + 1, bytes(held) if size <= limit else None


ESCAPED = 3
"""An escaped character takes up to three times its bytes in UTF-8."""
SLACK_BYTES = 1_048_576
"""Bytes that a line may have besides its text."""
NESTED = frozenset({dict, list})
STRUCTURE = (b",", b":", b"[", b"{")
"""One of these stands before each value in JSON, so counting them bounds the values."""
TEXT_IN_JSON = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A string, or an unclosed one with all that follows it: else the search would run to the end of
the line again for each quote."""

OLD_LINE_END = re.compile(rb"\r(?!\n|\Z)")


def longest_line(reading: Reading) -> int:
    """The most bytes of a line: of its text, escaped, and of what stands beside it."""
    return ESCAPED * reading.max_bytes + SLACK_BYTES


def read_jsonl(
    blocks: Iterable[bytes], check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read one JSON object a line."""
    longest, values = longest_line(reading), reading.bounds.record_values
    blank = 0
    for position, line in physical_lines(blocks, longest):
        if line is None:
            yield too_long(position, "The line", longest)
            continue
        if not line or line.isspace():
            blank += 1
            reading.bounds.check_blank(blank)
            continue
        if has_more(line, STRUCTURE, TEXT_IN_JSON, values):
            yield too_many(position, "The line", values)
            continue
        try:
            record = load_json(line, "The line")
        except JSONDecodeError as error:
            yield _not_json(position, line, error)
            continue
        except NotExact as error:
            where = "" if error.field is None else f" The field is '{shown_name(error.field)}'."
            yield BadInput(
                position, check.own_id(error.rest), Fault.NOT_STORABLE, f"{error}{where}"
            )
            continue
        if type(record) is not dict:
            reason = f"The line must hold a JSON object, and holds {kind_of(record)}."
            yield BadInput(position, None, Fault.WRONG_TYPE, reason)
            continue
        # Only escapes and deep nesting can hold what PostgreSQL can't store.
        clean = b"\\u" not in line and NESTED.isdisjoint(map(type, record.values()))
        yield check(position, record, clean=clean)


def read_lines(
    blocks: Iterable[bytes], check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read one text a line."""
    longest, blank = reading.max_bytes + SLACK_BYTES, 0
    for position, line in physical_lines(blocks, longest):
        if line is None:
            yield too_long(position, "The line", longest)
            continue
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            yield not_utf8(position, "The line", error)
            continue
        if text and not text.isspace():
            yield check(position, {check.first_text_name: text}, clean=True)
        else:
            blank += 1
            reading.bounds.check_blank(blank)


def has_more(record: bytes, signs: tuple[bytes, ...], text: re.Pattern[bytes], most: int) -> bool:
    """Tell whether a record has more than `most` of these signs outside of `text`.

    They are counted before the record is parsed: a small value takes a hundred times its length
    in memory.
    """
    if sum(map(record.count, signs)) <= most:
        return False
    bare = text.sub(b"", record)
    return sum(map(bare.count, signs)) > most


def too_many(position: int, what: str, most: int) -> BadInput:
    """Return the bad input for a record with too many values, which was not parsed."""
    reason = f"{what} has more than {most:,} values."
    return BadInput(position, None, Fault.TOO_LONG, reason)


def too_long(position: int, what: str, limit: int) -> BadInput:
    """Return the bad input for a record that was too long to read."""
    reason = f"{what} has more than {limit:,} bytes."
    return BadInput(position, None, Fault.TOO_LONG, reason)


def not_utf8(
    position: int, what: str, error: UnicodeDecodeError, custom_id: str | None = None
) -> BadInput:
    """Return the bad input for a record that is not UTF-8; it names the wrong byte."""
    byte = error.object[error.start]
    reason = f"{what} is not UTF-8 (byte {byte:#04x} at {error.start + 1}); save it as UTF-8. "
    reason += "From Latin-1, `iconv -f latin1 -t utf-8` does it."
    return BadInput(position, custom_id, Fault.BAD_ENCODING, reason)


def old_line_ends(record: bytes) -> str:
    """Return advice if a record holds bare carriage returns, else an empty string."""
    if OLD_LINE_END.search(record) is None:
        return ""
    return " It has carriage returns alone (old Macs end lines so); save it with other line ends."


def _not_json(position: int, line: bytes, error: JSONDecodeError) -> BadInput:
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return not_utf8(position, "The line", undecodable)
    reason = f"The line is not JSON from character {error.pos + 1} on.{old_line_ends(line)}"
    return BadInput(position, None, Fault.BAD_JSON, reason)
