"""Records from JSON Lines, and texts from plain lines."""

from collections.abc import Iterable, Iterator

import orjson

from services.sources.lines import physical_lines
from services.sources.reading import BadInput, Fault, Input
from services.sources.records import RecordCheck, kind_of

ESCAPED = 3
"""A character that JSON escapes takes up to three times its bytes in UTF-8."""
SLACK_BYTES = 1_048_576
"""What a line may have beside its text."""
NESTED = frozenset({dict, list})


def read_jsonl(
    blocks: Iterable[bytes], check: RecordCheck, max_bytes: int
) -> Iterator[Input | BadInput]:
    """Read one JSON object a line."""
    for position, line in physical_lines(blocks, ESCAPED * max_bytes + SLACK_BYTES):
        if line is None:
            yield too_long(position, "The line", ESCAPED * max_bytes + SLACK_BYTES)
            continue
        if not line or line.isspace():
            continue
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield _not_json(position, line, error)
            continue
        if type(record) is not dict:
            reason = f"The line must hold a JSON object, and holds {kind_of(record)}."
            yield BadInput(position, None, Fault.WRONG_TYPE, reason)
            continue
        # The parser takes nothing that can't be stored but an escaped NUL and deep nesting.
        clean = b"\\u" not in line and NESTED.isdisjoint(map(type, record.values()))
        yield check(position, record, clean=clean)


def read_lines(
    blocks: Iterable[bytes], check: RecordCheck, max_bytes: int
) -> Iterator[Input | BadInput]:
    """Read one text a line."""
    for position, line in physical_lines(blocks, max_bytes + SLACK_BYTES):
        if line is None:
            yield too_long(position, "The line", max_bytes + SLACK_BYTES)
            continue
        try:
            text = line.removesuffix(b"\r").decode()
        except UnicodeDecodeError as error:
            yield not_utf8(position, "The line", error)
            continue
        if text and not text.isspace():
            yield check(position, {check.first_text_name: text}, clean=True)


def too_long(position: int, what: str, limit: int) -> BadInput:
    """Say that a record was let go unread."""
    reason = f"{what} has more than {limit:,} bytes."
    return BadInput(position, None, Fault.TOO_LONG, reason)


def not_utf8(
    position: int, what: str, error: UnicodeDecodeError, custom_id: str | None = None
) -> BadInput:
    """Say which byte is wrong."""
    byte = error.object[error.start]
    reason = f"{what} is not UTF-8 (byte {byte:#04x} at {error.start + 1})."
    return BadInput(position, custom_id, Fault.BAD_ENCODING, reason)


def _not_json(position: int, line: bytes, error: orjson.JSONDecodeError) -> BadInput:
    try:
        line.decode()
    except UnicodeDecodeError as undecodable:
        return not_utf8(position, "The line", undecodable)
    if "surrogate" in error.msg:
        reason = "The line has half of a surrogate pair, which cannot be stored; remove it."
        return BadInput(position, None, Fault.NOT_STORABLE, reason)
    reason = f"The line is not JSON from character {error.pos + 1} on."
    return BadInput(position, None, Fault.BAD_JSON, reason)
