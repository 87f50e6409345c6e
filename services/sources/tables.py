"""Records from CSV: a header, and a record a row."""

import csv
import re
from collections.abc import Iterable, Iterator

from services.errors import InvalidInput
from services.sources.columns import wanted_columns
from services.sources.csv_records import COMMA, CsvRecord, csv_records
from services.sources.jsonl import SLACK_BYTES, has_more, not_utf8, too_long, too_many
from services.sources.reading import BadInput, Fault, Input, Reading
from services.sources.records import RecordCheck

DOUBLED = 2
"""In quotes, a quote has two characters."""
TEXT_IN_CELL = re.compile(rb'"[^"]*+"')


def read_csv(
    name: str, blocks: Iterable[bytes], check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read a table with a header. `name` is what it is called in an error."""
    limit = DOUBLED * reading.max_bytes + SLACK_BYTES
    if csv.field_size_limit() < limit:
        csv.field_size_limit(limit)  # the module's own bound is for all; it is only ever raised
    records = csv_records(blocks, limit)
    most = reading.bounds.record_values
    header = _header(name, records, most)
    wanted = frozenset(wanted_columns(name, header, reading))
    places = [place for place, column in enumerate(header) if column in wanted]
    for record in records:
        cells = _cells(record, limit, most)
        if isinstance(cells, BadInput):
            yield cells
        elif len(cells) == len(header):
            row = {header[place]: cells[place] for place in places}
            yield check(record.position, row, clean=b"\x00" not in (record.content or b""))
        elif cells:
            reason = f"The row has {len(cells):,} cells, and the header {len(header):,}."
            yield BadInput(record.position, None, Fault.BAD_CSV, reason)


def _header(name: str, records: Iterator[CsvRecord], most: int) -> list[str]:
    for record in records:
        cells = _cells(record, len(record.content or b""), most)
        if isinstance(cells, BadInput):
            raise InvalidInput(f"{name} has no header that can be read. {cells.reason}")
        if cells:
            return cells
    raise InvalidInput(f"{name} is empty; its first line must name the columns.")


def _cells(record: CsvRecord, limit: int, most: int) -> list[str] | BadInput:
    """Take a record apart; a blank line has no cells."""
    if record.content is None:
        bad = too_long(record.position, "The row", limit)
        return bad if record.complete else _unclosed(record)
    if not record.complete:
        return _unclosed(record)
    if has_more(record.content, (COMMA,), TEXT_IN_CELL, most):
        return too_many(record.position, "The row", most)
    try:
        return next(csv.reader([record.content.decode()], strict=True), [])
    except UnicodeDecodeError as error:
        return not_utf8(record.position, "The row", error)
    except csv.Error:
        reason = "The row has a quote or an end of line where CSV has none."
        return BadInput(record.position, None, Fault.BAD_CSV, reason)


def _unclosed(record: CsvRecord) -> BadInput:
    reason = "The row opens a quote that is never closed; all that follows it was passed over."
    return BadInput(record.position, None, Fault.BAD_CSV, reason)
