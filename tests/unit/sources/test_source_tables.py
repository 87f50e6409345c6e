"""Rows of CSV and Parquet come back as they were written, or as a fault that says why."""

import csv
import gzip
import io
import itertools
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.csv_records import csv_records
from promptstack.services.sources.inputs import BadInput, Fault, Format, Input, Reading, read_inputs
from promptstack.services.sources.records import RecordCheck
from promptstack.services.sources.tables import read_csv

good_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
)
texts = good_text.filter(lambda text: bool(text.strip()))
cells = st.one_of(good_text, st.text('",\r\n a', max_size=6))
rows = st.lists(st.tuples(texts, cells, cells), max_size=6)


def read(source: Any, **reading: Any) -> list[Input | BadInput]:
    return list(read_inputs(source, Reading(**reading)))


def refused(source: Any, **reading: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(source, **reading)
    return str(caught.value)


def table(text: str | bytes, **reading: Any) -> list[Input | BadInput]:
    data = text if isinstance(text, bytes) else text.encode()
    return read(io.BytesIO(data), format=Format.CSV, **reading)


def in_blocks(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@effort(deadline=None)
@given(
    rows,
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32-le"]),
)
def test_csv_comes_back_as_it_was_written(
    written: list[tuple[str, str, str]], end: str, quote_all: bool, sign: str, encoding: str
) -> None:
    # Left to itself, the csv module of Python 3.11 writes a carriage return without quotes.
    quote_all = quote_all or any("\r" in cell for row in written for cell in row)
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=sign, lineterminator=end, quoting=1 if quote_all else 0)
    writer.writerows([("text", "a", "b b"), *written])
    found = table(file.getvalue().encode(encoding))
    assert [(item.text, item.metadata) for item in found if isinstance(item, Input)] == [
        (text, {"a": one, "b b": other}) for text, one, other in written
    ]
    assert len(found) == len(written)


@effort(deadline=None, max_examples=400)
@given(st.text('",|\nab', max_size=40), st.integers(1, 45), st.sampled_from(",|"))
def test_records_end_where_the_csv_module_ends_them(text: str, size: int, sign: str) -> None:
    reader = csv.reader(text.splitlines(keepends=True), delimiter=sign)
    expected = [(reader.line_num, row) for row in reader]
    found = list(csv_records(in_blocks(text.encode(), size), 1_000, sign.encode()))
    parsed = [
        next(csv.reader([(record.content or b"").decode()], delimiter=sign), []) for record in found
    ]
    assert parsed == [row for _, row in expected]
    ends = [record.position - 1 for record in found[1:]]
    assert ends == [line for line, _ in expected][:-1]


@effort(deadline=None)
@given(st.text('",\nab', max_size=60), st.integers(1, 70), st.integers(0, 20))
def test_a_long_record_is_let_go_and_the_next_one_is_kept(text: str, size: int, limit: int) -> None:
    data = text.encode()
    whole = list(csv_records([data], 1_000))
    bounded = list(csv_records(in_blocks(data, size), limit))
    assert [(record.position, record.complete) for record in bounded] == [
        (record.position, record.complete) for record in whole
    ]
    for full, kept in zip(whole, bounded, strict=True):
        if kept.content is None:
            assert len(full.content or b"") >= limit  # the end of its line counts too
        else:
            assert kept.content == full.content
            assert len(kept.content) <= limit


def test_a_row_has_the_number_of_its_first_line() -> None:
    found = table('\ufefftext,n\r\n"one\r\ntwo",1\r\n\r\nthree,2')
    assert found == [
        Input(2, "2", "one\r\ntwo", None, {"n": "1"}),
        Input(5, "5", "three", None, {"n": "2"}),
    ]


@pytest.mark.parametrize(
    ("row", "code", "reason"),
    [
        (b"a,1,2", Fault.BAD_CSV, "The row has 3 cells, and the header 2."),
        (b"a", Fault.BAD_CSV, "The row has 1 cells"),
        (b'"a"b,1', Fault.BAD_CSV, "a quote or an end of line where CSV has none"),
        (b"a\rb,1", Fault.BAD_CSV, "a quote or an end of line"),
        (b"a\rb,1", Fault.BAD_CSV, "none. It has carriage returns alone"),
        (b"\xff,1", Fault.BAD_ENCODING, "byte 0xff at 1); save it as UTF-8."),
        (b"\x00,1", Fault.NOT_STORABLE, "a NUL character"),
        (b"a,\x00", Fault.NOT_STORABLE, "a NUL character"),
        (b" ,1", Fault.EMPTY_TEXT, "empty"),
        (b'"%s",1' % (b"long\n" * 21), Fault.TOO_LONG, "more than 100 UTF-8 bytes"),
        (b'"%s",1' % (b"long\n" * 1_000_000), Fault.TOO_LONG, "The row has more than"),
    ],
)
def test_a_bad_row_hurts_no_other(row: bytes, code: Fault, reason: str) -> None:
    bad, after = table(b"text,n\n" + row + b"\nfine,2\n", max_bytes=100)
    assert isinstance(bad, BadInput)
    assert (bad.position, bad.code) == (2, code)
    assert reason in bad.reason
    assert after == Input(row.count(b"\n") + 3, after.custom_id or "", "fine", None, {"n": "2"})


def test_old_ends_of_lines_are_told() -> None:
    said = refused(io.BytesIO(b"text,n\ra,1\rb,2\r"), format=Format.CSV)
    assert "It has carriage returns alone (old Macs end lines so)" in said


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_quote_that_is_never_closed_is_told(size: int) -> None:
    first, bad = table(b'text\nfine\n"open\n' + b"x\n" * size, max_bytes=100)
    assert isinstance(first, Input)
    assert isinstance(bad, BadInput)
    assert (bad.position, bad.code) == (3, Fault.BAD_CSV)
    assert "never closed" in bad.reason


def test_a_cell_may_be_longer_than_the_csv_modules_own_bound() -> None:
    text = "x" * 200_000  # it is 131,072
    [found] = table(f"text\n{text}\n")
    assert isinstance(found, Input)
    assert found.text == text


@pytest.mark.parametrize(
    ("data", "reading", "reason"),
    [
        ("", {}, "The stream is empty; its first line must name the columns."),
        ("\n\n", {}, "is empty"),
        ("text,n,text\n", {}, "has two columns 'text'; rename one"),
        ("n;label\na;b\n", {}, "it has n, label. Say which one has the text"),
        ("n;label\na;b\n", {}, "parted at semicolons"),
        ("a,b\n1,2\n", {}, "no column 'text', 'prompt' or 'messages'; it has a, b. Say which"),
        ("text\n", {"text_column": "body"}, "has no column 'body'; it has text."),
        ("text\n", {"id_column": "key"}, "has no column 'key'"),
        ("text\n", {"columns": ("x",)}, "has no column 'x'"),
        ("text\n", {"template": "{y}"}, "has no column 'y'"),
        ('text,"n', {}, "has no header that can be read"),
        (",".join(f"c{n}" for n in range(30)), {}, "c19 and 10 more"),
    ],
)
def test_a_table_without_what_is_asked_for_is_refused(
    data: str, reading: dict[str, Any], reason: str
) -> None:
    assert reason in refused(io.BytesIO(data.encode()), format=Format.CSV, **reading)
    header = data.split("\n", maxsplit=1)[0].split(",")
    if ";" in data:
        return
    if header != [""] and '"' not in data and len(set(header)) == len(header):
        file = parquet(pa.table({name: ["x"] for name in header}))
        assert reason in refused(file, format=Format.PARQUET, **reading)


PLAIN = Input(2, "2", "a", None, {"label": "b"})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (",text,label\n0,a,b\n", {"column 1": "0"}),  # pandas, with its index
        ('"","text","label"\n"1","a","b"\n', {"column 1": "1"}),  # R, col.names=NA
        ('"text","label"\n"1","a","b"\n', {}),  # R as it is
        ('"text";"label"\n"1";"a";"b"\n', {}),  # R, write.csv2
        ("text;label\na;b\n", {}),
        ('text;label\r\n"a";"b"\r\n', {}),
        ("text\tlabel\na\tb\n", {}),
        ("text|label\na|b\n", {}),
        ("text,label,\na,b,\n", {}),
        ("text,label,,\na,b,c,\n", {"column 3": "c"}),
        ("text,label\na,b,,\n", {}),
        ("text,label\na,b", {}),
        ('"a,b";text;label\nc;a;b\n', {"a,b": "c"}),
    ],
)
def test_tables_are_read_as_people_write_them(data: str, expected: dict[str, str]) -> None:
    found = table(data)
    assert found == [Input(2, "2", "a", None, {"label": "b", **expected})]
    reading = Reading()
    assert list(read_csv("It", in_blocks(data.encode(), 1), RecordCheck(reading), reading)) == found


@pytest.mark.parametrize("head", ["sep=;\r\n", '"sep=;"\n', "sep=^\n"])
def test_the_separator_that_excel_is_told_is_taken(head: str) -> None:
    sign = head.strip('"\r\n')[-1]
    assert table(f"{head}text{sign}label\na{sign}b\n") == [Input(3, "3", "a", None, {"label": "b"})]
    assert "parted at" in refused(io.BytesIO(f"{head}a{sign}b\n".encode()), format=Format.CSV)


def test_commas_are_taken_where_they_give_the_columns_that_are_needed() -> None:
    assert table("text,a;b;c;d\nx,1;2\n") == [Input(2, "2", "x", None, {"a;b;c;d": "1;2"})]
    [found] = table("a,b;text\n1,2;x\n", text_column="b;text")
    assert found == Input(2, "2", "2;x", None, {"a": "1"})


@pytest.mark.parametrize(
    ("data", "codes"),
    [
        # Ids from 1 on and a comma that nobody quoted: no row says which cell is the text.
        ("id,text\n1,Hello, world\n2,Foo, bar\n", ["BAD_CSV", "BAD_CSV"]),
        ('"text","n"\n"1","a","b"\n"3","c","d"\n"3","e","f"\n"g","h"\n', "a BAD_CSV e BAD_CSV"),
        ('"text","n"\n"2","a","b"\n', ["BAD_CSV"]),
        ('text,n\n"1","a","b"\n', ["BAD_CSV"]),
        ("text;n\na;b;c\nd;e\n", ["BAD_CSV", "d"]),
    ],
)
def test_what_could_be_read_in_two_ways_is_told_by_its_row(data: str, codes: Any) -> None:
    found = [item.code if isinstance(item, BadInput) else item.text for item in table(data)]
    assert found == (codes.split() if isinstance(codes, str) else codes)


def test_the_separator_that_was_taken_is_named() -> None:
    [bad] = table("text;n\na;b;c\n")
    assert isinstance(bad, BadInput)
    assert bad.reason == "The row has 3 cells, and the header 2, parted at semicolons."


def test_columns_that_are_not_kept_may_have_any_name(tmp_path: Path) -> None:
    assert table("text,label,label,\na,b,c,d\n", columns=()) == [Input(2, "2", "a", None, {})]
    path = tmp_path / "in.tsv"
    path.write_text("text\tlabel\na\tb\n")
    assert read(path) == [PLAIN]
    nameless = parquet(pa.table({"text": ["a"], "": ["b"]}))
    assert "has a column without a name" in refused(nameless, format=Format.PARQUET)
    nameless.seek(0)
    assert read(nameless, format=Format.PARQUET, columns=()) == [Input(1, "1", "a", None, {})]


def parquet(written: Any, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(written, file, **options)
    file.seek(0)
    return file


@effort(deadline=None)
@given(
    st.lists(
        st.tuples(
            texts,
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.floats(allow_nan=False, allow_infinity=False),
            st.none() | st.lists(st.none() | good_text, max_size=3),
            st.none() | st.fixed_dictionaries({"a": st.none() | st.booleans(), "b b": good_text}),
        ),
        max_size=8,
    ),
    st.integers(1, 3),
)
def test_parquet_comes_back_as_it_was_written(written: list[Any], group: int) -> None:
    names = ["text", "whole", "real", "list", "deep"]
    kinds = [
        pa.string(),
        pa.int64(),
        pa.float64(),
        pa.list_(pa.string()),
        pa.struct([("a", pa.bool_()), ("b b", pa.string())]),
    ]
    columns = [list(column) for column in zip(*written, strict=True)] or [[]] * 5
    schema = pa.schema(list(zip(names, kinds, strict=True)))
    file = parquet(pa.table(columns, schema=schema), row_group_size=group)
    assert read(file, format=Format.PARQUET) == [
        Input(at, str(at), row[0], None, dict(zip(names[1:], row[1:], strict=True)))
        for at, row in enumerate(written, 1)
    ]


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    when = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC).replace(tzinfo=None)
    path = tmp_path / "in.parquet"
    kinds = {
        "s": (pa.timestamp("s", "UTC"), when.replace(microsecond=0, tzinfo=UTC)),
        "ns": (pa.timestamp("ns"), when),
        "nested": (pa.list_(pa.struct([("at", pa.timestamp("ns", "UTC"))])), [{"at": when}]),
        "pair": (pa.list_(pa.time64("ns"), 2), [time(1), None]),
        "day": (pa.date32(), date(2026, 1, 2)),
        "took": (pa.duration("ns"), timedelta(seconds=1.5)),
        "price": (pa.decimal128(5, 2), Decimal("1.10")),
        "raw": (pa.binary(), "gr\u00fcn".encode()),
        "map": (pa.map_(pa.string(), pa.timestamp("ns")), {"k": when}),
        "large": (pa.large_list(pa.large_string()), ["x"]),
        "none": (pa.float32(), float("nan")),
        "kind": (pa.dictionary(pa.int8(), pa.string()), "red"),
    }
    columns = {name: pa.array([value], kind) for name, (kind, value) in kinds.items()}
    pq.write_table(pa.table({"text": ["t"], **columns}), path)
    [found] = read(path)
    assert found == Input(
        1,
        "1",
        "t",
        None,
        {
            "s": "2026-01-02T03:04:05+00:00",
            "ns": "2026-01-02T03:04:05.678901",
            "nested": [{"at": "2026-01-02T03:04:05.678901+00:00"}],
            "pair": ["01:00:00", None],
            "day": "2026-01-02",
            "took": 1.5,
            "price": "1.10",
            "raw": "gr\u00fcn",
            "map": {"k": "2026-01-02T03:04:05.678901"},
            "large": ["x"],
            "none": None,
            "kind": "red",
        },
    )


def test_a_finer_time_than_pythons_is_cut_off() -> None:
    stamps = pa.array([1_000_000_999], pa.timestamp("ns"))
    [found] = read(parquet(pa.table({"text": ["t"], "at": stamps})), format=Format.PARQUET)
    assert isinstance(found, Input)
    assert found.metadata == {"at": "1970-01-01T00:00:01"}


def test_rows_that_python_cannot_hold_hurt_no_other() -> None:
    raw = pa.array([b"one", b"\xff", b"three", b"four"]).view(pa.string())
    far = pa.array([0, 0, 2**62, 0], pa.timestamp("ms"))
    found = read(parquet(pa.table({"text": raw, "at": far})), format=Format.PARQUET)
    assert [item.code if isinstance(item, BadInput) else item.text for item in found] == [
        "one",
        Fault.BAD_ENCODING,
        Fault.WRONG_TYPE,
        "four",
    ]
    assert [item.position for item in found] == [1, 2, 3, 4]


def test_messages_of_a_table_lack_what_is_null() -> None:
    turns = [[{"role": "user", "content": "Hi", "tool_call_id": None, "tool_calls": None}], None]
    written = pa.table({"messages": turns, "prompt": [None, "p"]})
    found = read(parquet(written), format=Format.PARQUET)
    assert found == [
        Input(1, "1", None, [{"role": "user", "content": "Hi"}], {}),
        Input(2, "2", "p", None, {}),
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary(3)])
def test_a_binary_column_is_text_or_its_row_is_refused(kind: Any) -> None:
    """Nobody means base64 to be embedded, or to be an id."""
    for name in ("text", "id", "note"):
        values = [b"\xff\x00\x01", "\u20ac".encode(), b"a\x00b"]
        columns = {"text": ["x", "y", "z"], name: pa.array(values, kind)}
        bad, fine, nul = read(parquet(pa.table(columns)), format=Format.PARQUET)
        assert isinstance(bad, BadInput)
        assert (bad.code, bad.position) == (Fault.BAD_ENCODING, 1)
        assert f"'{name}'" in bad.reason
        assert isinstance(fine, Input)
        assert "\u20ac" in {fine.text, fine.custom_id, fine.metadata.get("note")}
        assert isinstance(nul, BadInput)
        assert nul.code == Fault.NOT_STORABLE


def test_names_that_are_the_same_as_text_are_refused() -> None:
    bad, fine = read([{"text": "x", "map": {1: "a", "1": "b"}}, "y"])
    assert isinstance(bad, BadInput)
    assert "'map'" in bad.reason
    assert isinstance(fine, Input)


def test_an_object_is_no_text() -> None:
    [found] = read(parquet(pa.table({"text": [{"a": 1}]})), format=Format.PARQUET)
    assert isinstance(found, BadInput)
    assert found.code == Fault.WRONG_TYPE


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    names = ["text", "id", "a", "b", "c"]
    far = pa.array([2**62], pa.timestamp("ms"))  # a row that has it can't be taken
    pq.write_table(pa.table({**{name: ["x"] for name in names}, "d": far}), path)
    reading = {"columns": ("b",), "template": "{text}{c}"}
    assert read(path, **reading) == [Input(1, "x", "xx", None, {"b": "x"})]
    [bad] = read(path)
    assert isinstance(bad, BadInput)


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_a_stream_of_parquet_is_read_from_a_copy(pack: Any, tmp_path: Path) -> None:
    data = pack(parquet(pa.table({"text": ["a", "b"]})).getvalue())
    path = tmp_path / "in.parquet.gz"
    path.write_bytes(data)
    sources = [io.BytesIO(data)] + ([path] if data[:1] != b"P" else [])
    for source in sources:
        found = read(source, format=Format.PARQUET)
        assert [item.text for item in found if isinstance(item, Input)] == ["a", "b"]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"text", b"PAR1" * 20])
def test_what_is_no_parquet_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(data)
    assert "is not a whole Parquet file" in refused(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    path.write_bytes(parquet(pa.table({"text": ["words"] * 100})).getvalue()[:-20])
    assert "is not a whole Parquet file" in refused(path)


def test_damage_within_the_file_says_how_far_it_came(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    noise = [f"{number * 7919 % 100_003:x}" for number in range(60_000)]
    options = {"row_group_size": 10_000, "compression": "zstd", "use_dictionary": False}
    data = bytearray(parquet(pa.table({"text": noise}), **options).getvalue())
    half = len(data) // 2
    data[half : half + 2_000] = bytes(2_000)
    path.write_bytes(data)
    found = read_inputs(path, Reading())
    assert next(found) == Input(1, "1", "0", None, {})
    with pytest.raises(InvalidInput, match=r"can't be read on after row [1-9][\d,]*: its data"):
        list(found)


class Rows(io.RawIOBase):
    """A CSV file of so many blocks of a thousand rows, made as it is read."""

    def __init__(self, blocks: int) -> None:
        self._blocks = itertools.chain(
            [b"text,n\n"], itertools.repeat(b'"some ""words""",1\n' * 1_000, blocks)
        )
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._blocks, b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def parquet_of(count: int, folder: Path) -> Path:
    """A file of one row group, the worst case."""
    path = folder / f"{count}.parquet"
    with pq.ParquetWriter(path, pa.schema([("text", pa.string())]), use_dictionary=False) as file:
        file.write_table(
            pa.table({"text": [f"{number:0100}" for number in range(count)]}), row_group_size=count
        )
    return path


def test_memory_does_not_grow_with_a_csv() -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        source = io.BufferedReader(Rows(count // 1_000))
        done = sum(1 for _ in read_inputs(source, Reading(Format.CSV)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert done == count
        return most

    assert peak(40_000) < peak(10_000) + 200_000


def test_memory_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    def peak(path: Path, count: int) -> int:
        before = pa.total_allocated_bytes()
        most = 0
        tracemalloc.start()
        for done, _ in enumerate(read_inputs(path, Reading()), 1):
            if done % 1_000 == 0:
                most = max(most, pa.total_allocated_bytes() - before)
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert done == count
        return most + python

    small, large = (parquet_of(count, tmp_path) for count in (20_000, 100_000))
    peak(small, 20_000)  # pyarrow imports more as it is used
    assert peak(large, 100_000) < peak(small, 20_000) + 3_000_000  # it has 10 MB of text


def test_long_rows_of_parquet_are_read_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    text = "x" * 100_000
    # A page is read as a whole, so they must not have all of the rows.
    pq.write_table(pa.table({"text": [text] * 400}), path, use_dictionary=False, write_batch_size=8)
    before = pa.total_allocated_bytes()
    found = read_inputs(path, Reading())
    assert next(found) == Input(1, "1", text, None, {})
    assert pa.total_allocated_bytes() - before < 20_000_000  # of 40 MB
    assert sum(1 for _ in found) == 399
