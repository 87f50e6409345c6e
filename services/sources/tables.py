"""Reads records from CSV: a header, then one record a row."""

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.columns import wanted_columns
from promptstack.services.sources.csv_records import COMMA, CsvRecord, csv_records
from promptstack.services.sources.jsonl import (
    SLACK_BYTES,
    has_more,
    not_utf8,
    old_line_ends,
    too_long,
    too_many,
)
from promptstack.services.sources.reading import BadInput, Fault, Input, Reading
from promptstack.services.sources.records import RecordCheck

START_BYTES = 65_536
DOUBLED = 2
"""In quotes, a quote has two characters."""
BLANK = frozenset({b"", b"\r"})
TEXT_IN_CELL = re.compile(rb'"[^"]*+"')
SEPARATORS = {COMMA: "commas", b";": "semicolons", b"\t": "tabs", b"|": "vertical bars"}
"""The likely one first."""
SEPARATOR_TOLD = re.compile(rb'"?sep=([,;\t|:^~ ])"?\r?\n')
"""A first line that tells it to Excel, and is no part of the table."""


@dataclass(frozen=True)
class Dialect:
    """The dialect of one table."""

    separator: bytes
    limit: int
    """Bytes of a row."""
    values: int
    """Cells of a row."""

    @property
    def separators(self) -> str:
        """Name the separators."""
        return SEPARATORS.get(self.separator, f"'{self.separator.decode()}'")


def read_csv(
    name: str, blocks: Iterable[bytes], check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read a table with a header. `name` stands in errors.

    A column without a name gets its number as name; rows keep its cells that are not empty.
    """
    limit = DOUBLED * reading.max_bytes + SLACK_BYTES
    if csv.field_size_limit() < limit:
        csv.field_size_limit(limit)  # the module's own bound is for all; it is only ever raised
    blocks = iter(blocks)
    start = _start(blocks)
    told = SEPARATOR_TOLD.match(start)
    table = _told(told, reading, limit) or _guessed(name, start, reading, limit)
    records = _not_blank(csv_records(chain([start], blocks), limit, table.separator), reading)
    if told:
        next(records)
    header, in_quotes = _header(name, records, table)
    names = _named(header)
    wanted = frozenset(_wanted(name, header, table, reading))
    places = [place for place, column in enumerate(names) if column in wanted]
    for record, cells in _rows(records, len(header), table, may_be_numbered=in_quotes):
        if isinstance(cells, BadInput):
            yield cells
            continue
        row = {names[place]: cells[place] for place in places if header[place] or cells[place]}
        yield check(record.position, row, clean=b"\x00" not in (record.content or b""))


def _not_blank(records: Iterator[CsvRecord], reading: Reading) -> Iterator[CsvRecord]:
    """Leave out blank lines, which are no rows."""
    blank = 0
    for record in records:
        if record.content in BLANK:
            blank += 1
            reading.bounds.check_blank(blank)
        else:
            yield record


def _start(blocks: Iterator[bytes]) -> bytes:
    """Read enough of a table to hold a `sep=` line and the header, unless the header is long."""
    start = bytearray()
    for block in blocks:
        start += block
        is_whole = b"\n" in block and start.lstrip(b"\r\n").count(b"\n") > 1
        if len(start) >= START_BYTES or (is_whole and start.count(b'"') % 2 == 0):
            break
    return bytes(start)


def _told(told: re.Match[bytes] | None, reading: Reading, limit: int) -> Dialect | None:
    return told and Dialect(told.group(1), limit, reading.bounds.record_values)


def _guessed(name: str, start: bytes, reading: Reading, limit: int) -> Dialect:
    """Return the separator that gives the wanted columns, else the one that gives most columns."""
    tables = [Dialect(each, limit, reading.bounds.record_values) for each in SEPARATORS]
    widths = []
    for table in tables:
        header: list[str] = []
        with suppress(InvalidInput):
            header, _ = _header(name, csv_records([start], limit, table.separator), table)
            _wanted(name, header, table, reading)
            return table
        widths.append(max(1, len(header)))
    return tables[widths.index(max(widths))]


def _header(name: str, records: Iterator[CsvRecord], table: Dialect) -> tuple[list[str], bool]:
    """Return the column names, and whether the first one is in quotes."""
    for record in records:
        cells = _cells(record, table)
        if isinstance(cells, BadInput):
            raise InvalidInput(f"{name} has no header that can be read. {cells.reason}")
        if cells:
            return cells, (record.content or b"").startswith(b'"')
    raise InvalidInput(f"{name} is empty; its first line must name the columns.")


def _named(header: list[str]) -> list[str]:
    return [name if name.strip() else f"column {at}" for at, name in enumerate(header, 1)]


def _wanted(name: str, header: list[str], table: Dialect, reading: Reading) -> list[str]:
    try:
        return wanted_columns(name, _named(header), reading)
    except InvalidInput as error:
        raise InvalidInput(f"{error} Its cells were parted at {table.separators}.") from error


def _rows(
    records: Iterator[CsvRecord], width: int, table: Dialect, *, may_be_numbered: bool
) -> Iterator[tuple[CsvRecord, list[str] | BadInput]]:
    """Each row with its cells, as many as the header has.

    Cells beyond it that hold nothing come of a separator too many. R writes each row's number
    before it, in quotes like the header, which has no name for it.
    """
    number = 0
    for record in records:
        cells = _cells(record, table)
        number += bool(cells)
        if isinstance(cells, BadInput) or not cells:
            yield from [(record, cells)] if cells else []
            continue
        if number == 1:
            first = b'"1"' + table.separator
            is_numbered = may_be_numbered and (record.content or b"").startswith(first)
            may_be_numbered = is_numbered and len(cells) == width + 1
        if may_be_numbered and len(cells) == width + 1 and cells[0] == str(number):
            yield record, cells[1:]
        elif len(cells) >= width and not (may_be_numbered or any(cells[width:])):
            yield record, cells[:width]
        else:
            reason = f"The row has {len(cells):,} cells, and the header {width:,}"
            reason += "." if table.separator == COMMA else f", parted at {table.separators}."
            yield record, BadInput(record.position, None, Fault.BAD_CSV, reason)


def _cells(record: CsvRecord, table: Dialect) -> list[str] | BadInput:
    """Split a record into cells; a blank line has none."""
    if record.content is None:
        bad = too_long(record.position, "The row", table.limit)
        return bad if record.complete else _unclosed(record)
    if not record.complete:
        return _unclosed(record)
    if has_more(record.content, (table.separator,), TEXT_IN_CELL, table.values):
        return too_many(record.position, "The row", table.values)
    try:
        text = record.content.decode()
        return next(csv.reader([text], strict=True, delimiter=table.separator.decode()), [])
    except UnicodeDecodeError as error:
        return not_utf8(record.position, "The row", error)
    except csv.Error:
        reason = "The row has a quote or an end of line where CSV has none."
        reason += old_line_ends(record.content)
        return BadInput(record.position, None, Fault.BAD_CSV, reason)


def _unclosed(record: CsvRecord) -> BadInput:
    reason = "The row opens a quote that is never closed; all that follows it was passed over."
    return BadInput(record.position, None, Fault.BAD_CSV, reason)
