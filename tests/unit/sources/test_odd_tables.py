"""Odd values in tables: each row is kept exactly, or refused by its number and in words."""

import csv
import io
import math
import os
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import Phase, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.sources.inputs import BadInput, Format, Reading, read_inputs

ROWS = 10
TABLES = max(1, int(os.environ.get("ODD_EXAMPLES", "300")) // ROWS)
odd = effort(max_examples=TABLES, deadline=None, phases=[Phase.explicit, Phase.generate])
"""`ODD_EXAMPLES=20000` looks longer."""

words = st.text(max_size=6) | st.sampled_from(["\x00", "a\x00", "\ud800", "1e400", "-0", "NaN", ""])
cells = words.filter(lambda word: "\ud800" not in word)
raw = st.binary(max_size=6) | cells.map(str.encode)
big = st.decimals(-(10**30), 10**30, places=4)
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.decimal128(38, 4): big,
    pa.decimal256(76, 4): big,
    pa.string(): cells,
    pa.large_string(): cells,
    pa.binary(): raw,
    pa.large_binary(): raw,
    pa.binary(2): st.binary(min_size=2, max_size=2),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.timestamp("s", "UTC"): st.integers(-(2**40), 2**40),
    pa.time64("us"): st.times(),
    pa.duration("us"): st.timedeltas(timedelta(-(10**5)), timedelta(10**5)),
    pa.null(): st.none(),
    pa.list_(pa.binary()): st.lists(raw, max_size=2),
    pa.list_(pa.float64()): st.lists(st.floats(), max_size=2),
    pa.struct([("a", pa.uint64())]): st.fixed_dictionaries({"a": st.integers(0, 2**64 - 1)}),
    pa.map_(pa.binary(), pa.int64()): st.lists(st.tuples(raw, st.integers(0, 9)), max_size=2),
}


@st.composite
def columns(draw: st.DrawFn) -> Any:
    kind = draw(st.sampled_from(list(KINDS)))
    values = st.none() | KINDS[kind]
    return pa.array(draw(st.lists(values, min_size=ROWS, max_size=ROWS)), kind)


@odd
@given(columns(), st.sampled_from(["note", "text", "id"]))
def test_rows_of_parquet_are_kept_exactly_or_refused(column: Any, name: str) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": ["some words"] * ROWS, name: column}), file)
    file.seek(0)
    found = list(read_inputs(file, Reading(Format.PARQUET)))
    assert [one.position for one in found] == list(range(1, ROWS + 1))
    for one, scalar in zip(found, column, strict=True):
        try:
            given_value = scalar.as_py()
        except OverflowError:  # a time that Python can't hold
            assert isinstance(one, BadInput)
            continue
        if pa.types.is_map(column.type) and given_value is not None:
            given_value = dict(given_value)
        if isinstance(one, BadInput):
            assert one.reason
            assert name != "note" or not is_plain(given_value), (one, given_value)
        elif name == "note":
            assert one.metadata["note"] == kept(given_value)
        elif name == "text":
            assert one.text == kept(given_value)
        elif kept(given_value) is not None:
            assert one.custom_id == str(kept(given_value))


@odd
@given(st.lists(st.tuples(cells, cells), min_size=ROWS, max_size=ROWS))
def test_rows_of_csv_are_kept_exactly_or_refused(rows: list[tuple[str, str]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerows([("text", "note"), *(("some words", note) for _, note in rows)])
    data = table.getvalue().encode()
    found = list(read_inputs(io.BytesIO(data), Reading(Format.CSV)))
    assert len(found) == ROWS
    for one, (_, note) in zip(found, rows, strict=True):
        if isinstance(one, BadInput):
            assert not is_plain(note), one
        else:
            assert one.metadata == {"note": note}


def is_plain(value: Any) -> bool:
    """Whether it must be taken."""
    if isinstance(value, float):
        return not math.isinf(value)
    if isinstance(value, str):
        return "\x00" not in value
    return value is None or isinstance(value, int | Decimal)


def kept(value: Any) -> Any:
    """What becomes of a value that is taken."""
    if isinstance(value, dict):
        return {name if isinstance(name, str) else name.decode(): value[name] for name in value}
    if isinstance(value, list):
        return [kept(part) for part in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return next((make(value) for kind, make in MADE if isinstance(value, kind)), value)


MADE: tuple[tuple[Any, Any], ...] = (
    (bytes, bytes.decode),
    (Decimal, str),
    (timedelta, timedelta.total_seconds),
    ((date, time), lambda value: value.isoformat()),
)
