"""Every record of a source comes back as it was written, or as a fault that says why."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.requests import MAX_TURNS
from promptstack.services.sources.batch_lines import BatchLines
from promptstack.services.sources.inputs import (
    BadInput,
    Fault,
    Format,
    Input,
    Reading,
    looked_at,
    read_inputs,
)
from promptstack.services.sources.jsonl import physical_lines

good_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
texts = good_text.filter(lambda text: bool(text.strip()))
words = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=10)
ids = st.one_of(words, st.integers(-(2**63), 2**63 - 1))
values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(allow_nan=False, allow_infinity=False),
        good_text,
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(good_text, inner)),
    max_leaves=8,
)
metadata = st.dictionaries(
    good_text.filter(lambda name: name not in {"text", "prompt", "messages", "custom_id", "id"}),
    values,
    max_size=3,
)
records = st.lists(st.tuples(ids, texts, metadata), max_size=8)


def read(source: Any, **reading: Any) -> list[Input | BadInput]:
    return list(read_inputs(source, Reading(**reading)))


def one(source: Any, **reading: Any) -> Input | BadInput:
    [found] = read(source, **reading)
    return found


def good(source: Any, **reading: Any) -> list[Input]:
    found = read(source, **reading)
    assert all(isinstance(item, Input) for item in found), found
    return [item for item in found if isinstance(item, Input)]


def fault(source: Any, **reading: Any) -> tuple[int, str | None, str, str]:
    found = one(source, **reading)
    assert isinstance(found, BadInput)
    return found.position, found.custom_id, found.code, found.reason


def refused(source: Any, **reading: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(source, **reading)
    return str(caught.value)


def stream(*lines: Any) -> io.BytesIO:
    return io.BytesIO(b"".join(orjson.dumps(line) + b"\n" for line in lines))


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(data, asbytes=True)
    return packed


class Trickle(io.RawIOBase):
    """Gives a few bytes at a time, as a slow pipe does."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or next(self._blocks, b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def trickle(data: bytes, size: int) -> BinaryIO:
    return io.BufferedReader(Trickle(data[at : at + size] for at in range(0, len(data), size)))


@effort(deadline=None)
@given(records, st.sampled_from(["\n", "\r\n"]), st.booleans(), st.integers(1, 40))
def test_jsonl_comes_back_as_it_was_written(
    rows: list[tuple[Any, str, Any]], end: str, ascii_only: bool, size: int
) -> None:
    written = [{"custom_id": row[0], "text": row[1], **row[2]} for row in rows]
    data = "".join(json.dumps(line, ensure_ascii=ascii_only) + end for line in written).encode()
    assert read(trickle(data, size)) == [
        Input(at, str(name), text, None, rest) for at, (name, text, rest) in enumerate(rows, 1)
    ]


@effort(deadline=None)
@given(records)
def test_python_records_come_back_as_they_are(rows: list[tuple[Any, str, Any]]) -> None:
    written = [{"id": row[0], "prompt": row[1], **row[2]} for row in rows]
    expected = [
        Input(at, str(name), text, None, rest) for at, (name, text, rest) in enumerate(rows, 1)
    ]
    assert read(written) == expected
    assert read(iter(written)) == expected
    assert [row[1] for row in rows] == [line["prompt"] for line in written]  # ours is a copy


@effort(deadline=None)
@given(st.lists(texts.filter(lambda text: not {"\n", "\r"} & set(text)), max_size=8))
def test_lines_come_back_with_their_numbers(lines: list[str]) -> None:
    data = "\ufeff" + "".join(f"\n{line}\r\n" for line in lines)
    found = good(io.BytesIO(data.encode()), format=Format.LINES)
    assert [(item.position, item.text) for item in found] == [
        (2 * number, line) for number, line in enumerate(lines, 1)
    ]


def test_strings_are_texts_and_their_ids_are_numbers() -> None:
    assert read(["a", "b"]) == [Input(1, "1", "a", None, {}), Input(2, "2", "b", None, {})]
    assert read(["a"], text_column="body", template="{body}!")[0] == Input(1, "1", "a!", None, {})


def test_blank_lines_are_passed_over_and_counted() -> None:
    data = b'\n{"text":"a"}\n \r\n\n{"text":"b"}'
    assert [item.position for item in read(io.BytesIO(data))] == [2, 5]


def test_python_values_become_json() -> None:
    record = {
        "text": "a",
        "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        "day": date(2026, 1, 2),
        "price": Decimal("1.10"),
        "pair": (1, {"deep": date(2026, 1, 2)}),
        "nothing": float("nan"),
        "raw": "gr\u00fcn".encode(),
        "map": {1: "a", "2": "b"},
    }
    found = one([record])
    assert isinstance(found, Input)
    assert found.metadata == {
        "when": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "price": "1.10",
        "pair": [1, {"deep": "2026-01-02"}],
        "nothing": None,
        "raw": "gr\u00fcn",
        "map": {"1": "a", "2": "b"},
    }


@pytest.mark.parametrize(
    ("record", "reading", "expected"),
    [
        ({"text": "t", "prompt": "p"}, {}, ("1", "t", {"prompt": "p"})),
        ({"text": None, "prompt": "p"}, {}, ("1", "p", {"text": None})),
        ({"id": 7, "custom_id": "c", "text": "t"}, {}, ("c", "t", {"id": 7})),
        ({"id": 7, "custom_id": None, "text": "t"}, {}, ("7", "t", {"custom_id": None})),
        ({"key": 7, "id": 8, "text": "t"}, {"id_column": "key"}, ("7", "t", {"id": 8})),
        ({"body": "b", "text": "t"}, {"text_column": "body"}, ("1", "b", {"text": "t"})),
        ({"text": "t", "a": 1, "b": 2}, {"columns": ("b", "c")}, ("1", "t", {"b": 2})),
        ({"text": "t", "id": 3}, {"template": "{id}: {text}"}, ("3", "3: t", {})),
        ({"a": 1}, {"template": "{a}"}, ("1", "1", {"a": 1})),
        ({"text": "t", "messages": 1}, {"text_column": "text"}, ("1", "t", {"messages": 1})),
        ({"word": "w"}, {"text_column": "word", "id_column": "word"}, ("w", "w", {})),
    ],
)
def test_which_fields_are_the_text_and_the_id(
    record: dict[str, Any], reading: dict[str, Any], expected: tuple[str, str, Any]
) -> None:
    found = good(stream(record), **reading)
    assert [(item.custom_id, item.text, item.metadata) for item in found] == [expected]


def test_messages_are_checked_and_written_alike() -> None:
    turns = [
        {"role": "user", "content": "Hi", "tool_call_id": None},
        {"role": "assistant", "tool_calls": [{"id": "1", "name": "look", "arguments": {"a": 1}}]},
        {"role": "tool", "tool_call_id": "1", "content": "found"},
    ]
    found = one(stream({"custom_id": "c", "messages": turns, "text": None}))
    plain = [{"role": "user", "content": "Hi"}, *turns[1:]]
    assert found == Input(1, "c", None, plain, {})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "custom_id", "code", "reason"),
    [
        (b'{"text"', None, Fault.BAD_JSON, "The line is not JSON from character 8 on."),
        (b"[1]", None, Fault.WRONG_TYPE, "must hold a JSON object, and holds a list"),
        (b'"text"', None, Fault.WRONG_TYPE, "holds a string"),
        (b'{"text": "\xff"}', None, Fault.BAD_ENCODING, "(byte 0xff at 11); save it as UTF-8."),
        (
            b'{"text": "a"}\r{"text": "b"}',
            None,
            Fault.BAD_JSON,
            "on. It has carriage returns alone",
        ),
        (rb'{"text": "\ud800"}', "1", Fault.NOT_STORABLE, "half of a surrogate pair"),
        (b'{"text": "a", "n": %d}' % 2**1024, None, Fault.NOT_STORABLE, "too many digits"),
        (b'{"text": "a", "n": ' + b"9" * 5_000 + b"}", None, Fault.NOT_STORABLE, "too many digits"),
        (b'{"text": "a", "n": 1e400}', None, Fault.NOT_STORABLE, "what a double holds"),
        (b'{"text": "a", "n": [-1e-400]}', None, Fault.NOT_STORABLE, "what a double holds"),
        (b'{"text": "a", "n": NaN}', None, Fault.NOT_STORABLE, "NaN, which JSON doesn't know"),
        (b'{"text": "a", "text": "b"}', None, Fault.NOT_STORABLE, "a name twice in one object"),
        (b'{"text": "a", "n": {"b" :1, "b":2}}', None, Fault.NOT_STORABLE, "a name twice"),
        (rb'{"text": "\":", "b" :1, "b" :2}', None, Fault.NOT_STORABLE, "a name twice"),
        (
            b'{"text": "a", "n": ' + b"[" * 9_999 + b"]" * 9_999 + b"}",
            None,
            Fault.NOT_STORABLE,
            "too deep",
        ),
        (rb'{"id": "x", "text": "a\u0000"}', "x", Fault.NOT_STORABLE, "a NUL character"),
        (
            rb'{"id": "x", "text": "a", "b": {"c": "\u0000"}}',
            "x",
            Fault.NOT_STORABLE,
            "field 'b' has",
        ),
        (rb'{"id": "x", "text": "a", "b": "\u0000"}', "x", Fault.NOT_STORABLE, "The field 'b' has"),
        (rb'{"id": "x", "text": "a", "b\u0000": 1}', "x", Fault.NOT_STORABLE, "name 'b\ufffd' has"),
        (b'{"id": "x", "a": [1], "n": [[NaN]]}', "x", Fault.NOT_STORABLE, "The field is 'n'."),
        (b'{"id": "x", "n": 1e400}', "x", Fault.NOT_STORABLE, "The field is 'n'."),
        (b'{"n": {"b": 1, "b": 2}, "id": 7}', "7", Fault.NOT_STORABLE, "The field is 'n'."),
        (b'{"id": "x", "n": 1, "n": 2}', "x", Fault.NOT_STORABLE, "The field is 'n'."),
        (b'{"id": "x", "id": "y"}', None, Fault.NOT_STORABLE, "The field is 'id'."),
        (b'{"id": "x", "\\u0000": ' + b"9" * 400 + b"}", "x", Fault.NOT_STORABLE, "is '\ufffd'."),
        (rb'{"id": "\u0000", "text": "a"}', None, Fault.NOT_STORABLE, "The id"),
        (b'{"id": "x", "text": ""}', "x", Fault.EMPTY_TEXT, "The text is empty."),
        (b'{"id": "x", "text": " \\n"}', "x", Fault.EMPTY_TEXT, "The text is empty."),
        (b'{"id": "x", "text": null}', "x", Fault.EMPTY_TEXT, "'text' is null"),
        (b'{"id": "x", "text": 5}', "x", Fault.WRONG_TYPE, "must be a string, and is a number"),
        (b'{"id": "x", "body": "b"}', "x", Fault.MISSING_FIELD, "has no 'text' or 'prompt'"),
        (b'{"id": true, "text": "a"}', None, Fault.WRONG_TYPE, "and is a boolean"),
        (b'{"id": 1.5, "text": "a"}', None, Fault.WRONG_TYPE, "and is a number"),
        (b'{"id": "", "text": "a"}', None, Fault.BAD_ID, "1 to 2,000 UTF-8 bytes"),
        (b'{"id": "%s", "text": "a"}' % (b"x" * 2001), None, Fault.BAD_ID, "2,000"),
        (b'{"text": "a", "messages": [{"role": "user", "content": "b"}]}', "1", Fault.CONFLICT, ""),
        (b'{"messages": []}', "1", Fault.EMPTY_TEXT, "'messages' is empty"),
        (b'{"messages": "hello"}', "1", Fault.WRONG_TYPE, "must be a list"),
        (b'{"messages": [7]}', "1", Fault.WRONG_TYPE, "not right at '0'"),
        (b'{"messages": [{"role": "user"}]}', "1", Fault.WRONG_TYPE, "content is empty"),
        (b'{"messages": [{"role": "boss", "content": "b"}]}', "1", Fault.WRONG_TYPE, "'0.role'"),
        (
            b'{"messages": [{"role": "user", "content": "\\u0000"}]}',
            "1",
            Fault.NOT_STORABLE,
            "content has a NUL character",
        ),
        (
            b'{"text": "a", "deep": ' + b"[" * 60 + b"]" * 60 + b"}",
            "1",
            Fault.NOT_STORABLE,
            "nested more than 50",
        ),
    ],
)
def test_a_bad_line_is_one_bad_input_and_hurts_no_other(
    line: bytes, custom_id: str | None, code: Fault, reason: str
) -> None:
    bad, after = read(io.BytesIO(line + b'\n{"text": "fine"}\n'))
    assert isinstance(bad, BadInput)
    assert (bad.position, bad.custom_id, bad.code) == (1, custom_id, code)
    assert reason in bad.reason
    assert after == Input(2, "2", "fine", None, {})


SECRET = "Sesame"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"text": "{SECRET}\\u0000"}}',
        f'{{"text": "{SECRET}\\ud800"}}',
        f'{{"text": "{SECRET}" x}}',
        f'{{"text": ["{SECRET}"]}}',
        f'{{"messages": [{{"role": "{SECRET}", "content": "{SECRET}"}}]}}',
        f'{{"messages": [{{"role": "user", "{SECRET}": "{SECRET}"}}]}}',
        f'{{"messages": "{SECRET}"}}',
        f'{{"text": "{SECRET * 20}"}}',
    ],
)
def test_a_reason_never_quotes_the_text(line: str) -> None:
    assert SECRET not in fault(io.BytesIO(line.encode()), max_bytes=100)[3]


@pytest.mark.parametrize("item", [5, None, b"bytes", {"text": object()}, {5: "x"}])
def test_what_is_no_record_is_a_fault(item: Any) -> None:
    assert fault([item])[2] == Fault.WRONG_TYPE


@pytest.mark.parametrize(
    "number", [10**400, 10**5_000, -(10**400)], ids=["many", "thousands", "less than none"]
)
def test_a_number_of_hundreds_of_digits_is_no_id(number: int) -> None:
    found = one([{"id": number, "text": "a"}])
    assert isinstance(found, BadInput)
    assert (found.code, found.reason) == (
        Fault.BAD_ID,
        "The id 'id' is a number with too many digits.",
    )


def test_a_refused_record_keeps_its_id_and_names_its_field() -> None:
    found = one([{"id": "x", "text": "a", "odd\x00\n": object()}])
    assert isinstance(found, BadInput)
    assert found.custom_id == "x"
    assert r"The field 'odd�\n' can't be taken" in found.reason


def test_an_infinite_number_is_not_storable() -> None:
    assert fault([{"text": "a", "n": float("inf")}])[2] == Fault.NOT_STORABLE


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("123456789012345678901234567890", 123456789012345678901234567890),
        (str(2**1024 - 1), 2**1024 - 1),
        ("-9223372036854775809", -9223372036854775809),
        ("18446744073709551616", 18446744073709551616),
        ("6.02214076e23", 6.02214076e23),
        ("1.0", 1.0),
        ("1e16", 1e16),
        ("5e-324", 5e-324),
        ("0e-999", 0.0),
        ('{"a": [123456789012345678901]}', {"a": [123456789012345678901]}),
    ],
)
def test_numbers_are_read_as_they_are(written: str, kept: Any) -> None:
    [found] = good(io.BytesIO(f'{{"text": "a: b", "n": {written}}}'.encode()))
    assert found.metadata["n"] == kept
    assert type(found.metadata["n"]) is type(kept)


@effort(deadline=None)
@given(st.integers(1, 60), st.text("aé€🙂", min_size=1, max_size=30))
def test_a_text_is_measured_in_bytes(max_bytes: int, text: str) -> None:
    found = one([text], max_bytes=max_bytes)
    if len(text.encode()) <= max_bytes:
        assert found == Input(1, "1", text, None, {})
    else:
        assert isinstance(found, BadInput)
        assert found.code == Fault.TOO_LONG


def test_long_messages_are_too_long() -> None:
    turns = [{"role": "user", "content": "x" * 60}] * 2
    assert fault(stream({"messages": turns}), max_bytes=100)[2] == Fault.TOO_LONG


def test_a_conversation_of_a_run_has_no_more_turns_than_one_of_a_job() -> None:
    turn = {"role": "user", "content": "a"}
    assert isinstance(one(stream({"messages": [turn] * MAX_TURNS})), Input)
    assert fault(stream({"messages": [turn] * (MAX_TURNS + 1)}))[2] == Fault.TOO_LONG


@pytest.mark.parametrize("kind", [Format.JSONL, Format.LINES])
@pytest.mark.parametrize("size", [1_000_000, 7_000_000])
def test_a_line_without_end_is_let_go(kind: Format, size: int) -> None:
    line = b"x" * size
    ends = b'{"text": "fine"}'
    found = read(io.BytesIO(line + b"\n" + ends + b"\n" + line), format=kind, max_bytes=100)
    assert [item.position for item in found] == [1, 2, 3]
    codes = [item.code for item in found if isinstance(item, BadInput)]
    unread = Fault.BAD_JSON if kind is Format.JSONL and size == 1_000_000 else Fault.TOO_LONG
    assert codes == [unread, unread]


@effort(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=12), st.integers(1, 30))
def test_lines_at_the_bound_are_kept_and_longer_ones_are_not(sizes: list[int], block: int) -> None:
    data = b"".join(b"x" * size + b"\n" for size in sizes) + b"end"
    blocks = (data[at : at + block] for at in range(0, len(data), block))
    assert list(physical_lines(blocks, 20)) == [
        *((at, b"x" * size if size <= 20 else None) for at, size in enumerate(sizes, 1)),
        (len(sizes) + 1, b"end"),
    ]


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bz2.compress], ids=["gzip", "zstd", "bz2"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bz2"])
def test_compression_is_known_by_its_first_bytes(
    pack: Callable[[bytes], bytes], suffix: str, tmp_path: Path
) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    path.write_bytes(pack(b'\xef\xbb\xbf{"text":"a"}\n') + pack(b'{"text":"b"}\n'))
    own = ".gz" if pack is gzip.compress else ".zst" if pack is zstd else ".bz2"
    if suffix not in {"", own}:
        assert "is none; rename it or compress it again" in refused(path)
    else:
        assert [item.text for item in good(path)] == ["a", "b"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd, bz2.compress], ids=["gzip", "zstd", "bz2"])
def test_damaged_compression_says_how_far_it_came(pack: Callable[[bytes], bytes]) -> None:
    noise = "".join(f"{number * 7919 % 100_003:x}" for number in range(400_000))
    lines = [{"text": noise[at : at + 1000]} for at in range(0, len(noise), 1000)]
    data = pack(stream(*lines).getvalue())
    cut = refused(io.BytesIO(data[:-9]))
    assert cut.startswith("The stream can't be read on after ")
    assert "data is cut off" in cut
    assert "data is damaged" in refused(io.BytesIO(data + b"more"))


def test_a_wrong_checksum_is_damage() -> None:
    data = bytearray(gzip.compress(b'{"text":"a"}\n'))
    data[-8] ^= 1
    assert "its gzip data is damaged" in refused(io.BytesIO(bytes(data)))


def test_records_before_the_damage_are_read() -> None:
    lines = [{"text": f"{number * 7919 % 100_003:x}" * 20} for number in range(30_000)]
    data = gzip.compress(stream(*lines).getvalue(), 1)
    found = read_inputs(io.BytesIO(data[:-20]), Reading())
    first = next(found)
    assert isinstance(first, Input)
    assert first.text == lines[0]["text"]
    with pytest.raises(InvalidInput, match="cut off"):
        list(found)


def test_a_file_named_as_compressed_that_is_not() -> None:
    named = io.BytesIO(b'{"text":"a"}')
    named.name = "in.jsonl.gz"
    assert "is named as gzip data and is none" in refused(named)


def test_standard_input_is_read_where_the_path_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"text":"a"}')))
    assert read("-") == [Input(1, "1", "a", None, {})]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"plain")))
    assert read("-", format=Format.LINES) == [Input(1, "1", "plain", None, {})]


def test_a_stream_stays_open_and_tells_its_format_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("one\ntwo\n")
    with path.open("rb") as file:
        assert [item.text for item in good(file)] == ["one", "two"]
        assert not file.closed


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "The path is empty"),
        ("nowhere.jsonl", "does not exist"),
        ("a\x00b", "can't be read"),
        (io.StringIO("text"), "open it in binary mode"),
        (b"bytes", "A source is a path"),
        ({"text": "one record"}, "A source is a path"),
    ],
)
def test_what_is_no_source_is_refused_at_once(source: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        read_inputs(source, Reading())


@pytest.mark.parametrize("name", ["in.bin", "in", "in.gz"])
def test_an_unknown_suffix_is_refused_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InvalidInput, match="tells no format; name one of jsonl, csv"):
        read_inputs(tmp_path / name, Reading())
    assert good(tmp_path / name, format=Format.LINES) if name != "in.gz" else True


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_unicode_is_read_in_any_of_its_encodings(
    encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    lines = [f"line {number} é 北京 🦉" for number in range(20_000)]
    data = pack("\r\n".join(lines).encode(encoding))
    found = good(io.BytesIO(data), format=Format.LINES)
    assert [item.text for item in found] == lines
    trickled = io.BufferedReader(Trickle(data[at : at + 1] for at in range(min(300, len(data)))))
    assert (
        next(read_inputs(trickled, Reading(format=Format.LINES))) == found[0] or pack is not bytes
    )


def test_half_a_pair_in_utf_16_is_its_lines_fault_alone() -> None:
    data = "one\n\ud800 two\nthree\n".encode("utf-16-le", "surrogatepass")
    found = read(io.BytesIO(data), format=Format.LINES)
    assert [item.code if isinstance(item, BadInput) else item.text for item in found] == [
        "one",
        Fault.BAD_ENCODING,
        "three",
    ]
    assert "can't be read on after 31 bytes: it is not all UTF-16." in refused(
        io.BytesIO(data[:-1]), format=Format.LINES
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"PK\x03\x04" + bytes(30), "is a zip archive or an Excel workbook"),
        (lzma.compress(b"{}"), "is xz data; unpack it first"),
        (gzip.compress(gzip.compress(b"{}")), "is compressed more than once"),
        (gzip.compress(b"PK\x03\x04" + bytes(30)), "is a zip archive"),
    ],
    ids=["zip", "xz", "gzip twice", "zip in gzip"],
)
def test_what_has_to_be_unpacked_first_is_told_by_name(data: bytes, reason: str) -> None:
    assert reason in refused(io.BytesIO(data))


def test_zeros_after_gzip_are_nothing_and_a_frame_to_skip_is_skipped() -> None:
    packed = gzip.compress(b'{"text":"a"}\n')
    padded = packed + packed + bytes(1_000) + packed
    assert [item.text for item in good(io.BytesIO(padded))] == ["a", "a", "a"]
    skipped = b"\x53\x2a\x4d\x18\x03\x00\x00\x00abc" + zstd(b'{"text":"b"}\n')
    assert [item.text for item in good(io.BytesIO(skipped))] == ["b"]
    assert [item.text for item in good(io.BytesIO(b"BZh9 text"), format=Format.LINES)] == [
        "BZh9 text"
    ]


def test_a_stream_that_fails_says_so() -> None:
    def blocks() -> Iterator[bytes]:
        yield b'{"text":"a"}\n'
        raise OSError(5, "Input/output error")

    found = read_inputs(io.BufferedReader(Trickle(blocks())), Reading())
    assert next(found) == Input(1, "1", "a", None, {})
    with pytest.raises(InvalidInput, match=r"after 13 bytes: Input/output error\."):
        next(found)


def test_an_error_below_the_compression_is_told_as_what_it_is() -> None:
    packed = gzip.compress(
        stream(*({"text": f"{n * 7919 % 100_003}"} for n in range(50_000))).getvalue()
    )

    def blocks() -> Iterator[bytes]:
        yield packed[:1_000]
        raise OSError(5, "Input/output error")

    reason = refused(io.BufferedReader(Trickle(blocks())))
    assert reason == "The stream can't be read on after 1,000 bytes: Input/output error."


def test_a_stream_that_unpacks_by_itself_and_is_cut_off() -> None:
    data = gzip.compress(stream(*({"text": f"{n}"} for n in range(1_000))).getvalue())
    reason = refused(gzip.GzipFile(fileobj=io.BytesIO(data[:-9])))
    assert reason.endswith("bytes: it ended with an error.")


def test_positions_hold_over_many_blocks() -> None:
    data = b"".join(b"line %d\n" % number for number in range(1, 100_001))
    for item in good(io.BytesIO(data), format=Format.LINES):
        assert item.text == f"line {item.position}"


def test_a_record_that_holds_itself_hurts_no_other() -> None:
    record: dict[str, Any] = {"text": "a"}
    record["self"] = record
    bad, fine = read([record, "b"])
    assert isinstance(bad, BadInput)
    assert bad.code == Fault.WRONG_TYPE
    assert fine == Input(2, "2", "b", None, {})


@pytest.mark.parametrize("reading", [{"max_bytes": 0}, {"chunk_overlap_tokens": 9}])
def test_bounds_that_make_no_sense_are_refused(reading: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match=r"at least one byte|only where a size"):
        Reading(**reading)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "sizes", [(15, None), (-1, None), (8_001, None), (10**30, None), (20, 20), (20, -1)]
)
def test_chunks_that_make_no_sense_are_refused_before_anything_is_read(
    sizes: tuple[int, int | None],
) -> None:
    reading = Reading(chunk_tokens=sizes[0], chunk_overlap_tokens=sizes[1])
    with pytest.raises(InvalidInput, match="tokens"):
        read_inputs(iter(lambda: pytest.fail("read"), None), reading)


def test_metadata_keeps_its_order() -> None:
    record = {"text": "t", **{f"c{n}": n for n in range(30)}}
    found = one([record], columns=tuple(record))
    assert isinstance(found, Input)
    assert list(found.metadata) == list(record)[1:]


def endless(line: bytes, size: int, head: bytes = b"") -> BinaryIO:
    """A stream of at least `size` bytes that are never in memory together."""
    block = line * (65_536 // len(line) + 1)
    blocks = itertools.repeat(block, size // len(block) + 1)
    return io.BufferedReader(Trickle(itertools.chain([head], blocks) if head else blocks))


@pytest.mark.parametrize(
    ("kind", "head", "line"),
    [
        (Format.JSONL, b"", b'{"custom_id":"c","text":"some words","n":1}\n'),
        (Format.JSONL, b"", b"x" * 4096),
        (Format.LINES, b"", b"some words\n"),
        (Format.LINES, b"", b"x" * 4096),
        (Format.CSV, b"text,n\n", b"x" * 4096),
        (Format.CSV, b"text,n\n", b'"x",'),
        (Format.CSV, b'text,n\n"', b"a quote left open\n"),
        (Format.CSV, b"", b"no header, "),
    ],
)
def test_memory_does_not_grow_with_the_source(kind: Format, head: bytes, line: bytes) -> None:
    def peak(size: int) -> int:
        tracemalloc.start()
        try:
            for _ in read_inputs(endless(line, size, head), Reading(kind, max_bytes=100)):
                pass
        except InvalidInput:
            assert not head  # such a header is none
        finally:
            _, most = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        return most

    assert peak(3_000_000) < peak(1_500_000) + 500_000


@pytest.mark.parametrize("line", [b'{"text":"some words"}\n', b"x" * 4096])
def test_memory_does_not_grow_with_a_source_that_was_looked_at(line: bytes) -> None:
    def peak(size: int) -> int:
        tracemalloc.start()
        reading = Reading(Format.JSONL, max_bytes=100)
        opened, records = looked_at(endless(line, size), reading)
        assert BatchLines("generation", dict).agree(records) == {}
        del records
        for _ in read_inputs(opened, reading):
            pass
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(6_000_000) < peak(3_000_000) + 500_000


def test_only_the_first_record_of_a_slow_source_is_read_for_the_check() -> None:
    def blocks() -> Iterator[bytes]:
        yield b'{"text":"a"}\n'
        yield pytest.fail("it waited for more")

    opened, records = looked_at(io.BufferedReader(Trickle(blocks())), Reading())
    assert BatchLines("generation", dict).agree(records) == {}
    assert next(read_inputs(opened, Reading())) == Input(1, "1", "a", None, {})
    items, records = looked_at(iter(["a", "b"]), Reading())
    assert BatchLines("generation", dict).agree(records) == {}
    assert [item.text for item in good(items)] == ["a", "b"]
