"""What is exported is read back the same, and a file appears whole or not at all."""

import csv
import gzip
import io
import json
import os
import re
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.export import array_writers
from promptstack.services.export.atomic import COMPRESSIONS
from promptstack.services.export.line_writers import text_cell
from promptstack.services.export.paths import COMPRESSED
from promptstack.services.export.results import (
    ExportFailed,
    ExportFormat,
    ExportSummary,
    FailedItem,
    Produced,
    export,
)

SIZE = 3
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".npy"]
good_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20
)
metadata = st.dictionaries(
    good_text,
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | good_text | st.lists(good_text),
    max_size=3,
)
vectors = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=SIZE, max_size=SIZE
).map(lambda numbers: np.array(numbers, np.float32))
answers = st.fixed_dictionaries(
    {"text": good_text, "model": good_text, "finish_reason": good_text},
    optional={
        "input_tokens": st.integers(0, 2**40),
        "output_tokens": st.integers(0, 2**40),
        "json": st.none() | metadata,
        "tool_calls": st.lists(metadata, max_size=2),
    },
)
embedded = st.lists(
    st.builds(Produced, st.integers(1, 2**40), good_text, metadata, good_text, vectors, st.none()),
    max_size=8,
)
generated = st.lists(
    st.builds(Produced, st.integers(1, 2**40), good_text, metadata, good_text, st.none(), answers),
    max_size=8,
)
failures = st.lists(
    st.builds(
        FailedItem,
        st.integers(1, 2**40),
        st.none() | good_text,
        good_text,
        good_text,
        st.none() | good_text,
        metadata,
    ),
    max_size=3,
)
many = effort(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vector(*numbers: float) -> Produced:
    return Produced(1, "a", {"n": 1}, "text", np.array(numbers, np.float32), None)


def answer(**fields: Any) -> Produced:
    return Produced(1, "a", {"n": 1}, "text", None, {"text": "Hello", **fields})


def lines(path: Path) -> list[Any]:
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    elif data.startswith(b"\x28\xb5\x2f\xfd"):
        data = pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return [json.loads(line) for line in data.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def expected_line(item: Produced, *, with_input: bool) -> dict[str, Any]:
    line: dict[str, Any] = {
        "position": item.position,
        "custom_id": item.custom_id,
        "metadata": item.metadata,
    }
    return {**line, "text": item.text} if with_input else line


def same_vector(found: Any, item: Produced) -> bool:
    assert item.vector is not None
    return np.array(found, np.float32).tobytes() == item.vector.tobytes()


def answer_of(row: dict[str, Any]) -> dict[str, Any]:
    """Put an answer together again from its columns."""
    found = {name: row[name] for name in ("model", "finish_reason")}
    counted = {name: row[name] for name in ("input_tokens", "output_tokens")}
    found |= {name: int(value) for name, value in counted.items() if value not in {None, ""}}
    found |= {"json": json.loads(row["json"])} if row["json"] else {}
    return {"text": row["answer"], **found, **json.loads(row["details"] or "{}")}


def csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        csv.field_size_limit(max(csv.field_size_limit(), 1_000_000))
        return list(csv.DictReader(file))


@many
@given(embedded | generated, failures, st.booleans(), st.sampled_from(["", ".gz", ".zst"]))
def test_json_lines_are_read_back_the_same(
    tmp_path: Path,
    items: list[Produced],
    failed: list[FailedItem],
    with_input: bool,
    suffix: str,
) -> None:
    path = tmp_path / f"out.jsonl{suffix}"
    errors = tmp_path / "out.errors.jsonl"
    done = export(path, iter(items), iter(failed), with_input=with_input)
    assert done == ExportSummary(len(items), len(failed), path, None, errors if failed else None)
    found = lines(path)
    assert len(found) == len(items)
    for line, item in zip(found, items, strict=True):
        if item.vector is not None:
            assert same_vector(line.pop("vector"), item)
        else:
            assert line.pop("answer") == item.answer
        assert line == expected_line(item, with_input=with_input)
    assert errors.exists() == bool(failed)
    if failed:
        assert [FailedItem(**line) for line in lines(errors)] == failed


@many
@given(embedded, st.booleans(), st.integers(1, 4))
def test_vectors_in_parquet_are_read_back_the_same(
    tmp_path: Path, items: list[Produced], with_input: bool, group: int
) -> None:
    path = tmp_path / "out.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(array_writers, "GROUP_ROWS", group)
        done = export(path, items, [], dimensions=SIZE, count=len(items), with_input=with_input)
    assert done == ExportSummary(len(items), 0, path, None, None)
    table = pq.read_table(path)
    assert table.schema.field("vector").type == pa.list_(pa.float32(), SIZE)
    rows = table.to_pylist()
    for row, item in zip(rows, items, strict=True):
        assert same_vector(row.pop("vector"), item)
        row["metadata"] = json.loads(row["metadata"])
        assert row == expected_line(item, with_input=with_input)


@many
@given(generated, st.booleans())
def test_answers_in_tables_are_read_back_the_same(
    tmp_path: Path, items: list[Produced], with_input: bool
) -> None:
    parquet, csv_path = tmp_path / "out.parquet", tmp_path / "out.csv"
    export(parquet, items, [], with_input=with_input)
    export(csv_path, items, [], with_input=with_input)
    shown_items = [
        Produced(
            item.position,
            text_cell(item.custom_id, guarded=True),
            item.metadata,
            text_cell(item.text or "", guarded=True),
            None,
            {
                name: text_cell(value, guarded=True) if isinstance(value, str) else value
                for name, value in (item.answer or {}).items()
            },
        )
        for item in items
    ]
    for rows, expected in (
        (pq.read_table(parquet).to_pylist(), items),
        (csv_rows(csv_path), shown_items),
    ):
        for row, item in zip(rows, expected, strict=True):
            assert answer_of(row) == item.answer
            known = expected_line(item, with_input=with_input)
            assert int(row["position"]) == known.pop("position")
            assert json.loads(row["metadata"]) == known.pop("metadata")
            assert {name: row[name] for name in known} == known
            assert ("text" in row) == with_input


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", "\uff1d"])
def test_a_text_in_csv_is_no_formula(tmp_path: Path, start: str) -> None:
    said = f"{start}1+1"
    item = Produced(1, said, {said: said}, said, None, {"text": said, "model": said, "json": -1})
    path = tmp_path / "out.csv"
    export(path, [item], [], with_input=True)
    [row] = csv_rows(path)
    for name in ("custom_id", "text", "answer", "model"):
        assert row[name] == "'" + said.replace("\r", "\\x0d")
    assert (row["position"], row["json"]) == ("1", "-1")
    assert json.loads(row["metadata"]) == {said: said}
    export(path, [item], [], with_input=True, guard_formulas=False)
    assert csv_rows(path)[0]["answer"] == said.replace("\r", "\\x0d")


def test_control_characters_in_csv_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    said = "a\x1b[2Jb\x9bc\x7fd\re\x08\tf\r\ng\nh"
    export(path, [answer(text=said, json=said)], [])
    assert json.loads(csv_rows(path)[0]["json"]) == said
    assert csv_rows(path)[0]["answer"] == "a\\x1b[2Jb\\x9bc\\x7fd\\x0de\\x08\tf\r\ng\nh"
    assert not set(path.read_text(encoding="utf-8")) & {"\x1b", "\x9b", "\x7f", "\x08"}


@many
@given(embedded)
def test_vectors_in_csv_are_read_back_the_same(tmp_path: Path, items: list[Produced]) -> None:
    path = tmp_path / "out.csv"
    export(path, items, [], dimensions=SIZE)
    for row, item in zip(csv_rows(path), items, strict=True):
        assert same_vector(json.loads(row["vector"]), item)


@many
@given(embedded, st.booleans())
def test_numpy_reads_the_vectors_and_the_ids_lie_beside(
    tmp_path: Path, items: list[Produced], with_input: bool
) -> None:
    path = tmp_path / "out.npy"
    done = export(path, iter(items), [], dimensions=SIZE, with_input=with_input)
    assert done.ids_path == tmp_path / "out.ids.jsonl"
    found = np.load(path, mmap_mode="r")
    assert (found.shape, found.dtype) == ((len(items), SIZE), np.float32)
    assert all(same_vector(row, item) for row, item in zip(found, items, strict=True))
    assert lines(done.ids_path) == [expected_line(item, with_input=with_input) for item in items]


def test_a_header_of_numpy_has_room_for_any_count(tmp_path: Path) -> None:
    items = (Produced(at, str(at), {}, None, np.zeros(1, np.float32), None) for at in range(12_345))
    export(tmp_path / "out.npy", items, [])
    assert np.load(tmp_path / "out.npy").shape == (12_345, 1)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".csv", ".npy"])
def test_nothing_to_export_is_an_empty_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    assert export(path, [], [], dimensions=4, count=0).items == 0
    if suffix == ".parquet":
        assert pq.read_table(path).num_rows == 0
    elif suffix == ".npy":
        assert np.load(path).shape == (0, 4)
    elif suffix == ".csv":
        assert path.read_text() == "position,custom_id,metadata,vector\n"
    else:
        assert path.read_bytes() == b""


def test_a_vector_that_is_missing_is_null_in_a_table(tmp_path: Path) -> None:
    items = [vector(1, 2), Produced(2, "b", {}, None, None, None)]
    export(tmp_path / "out.parquet", items, [])
    assert pq.read_table(tmp_path / "out.parquet")["vector"].to_pylist() == [[1, 2], None]


def test_other_arrays_are_written_as_float32(tmp_path: Path) -> None:
    wide = np.arange(6, dtype=np.float64)[::2]
    item = Produced(1, "a", {}, None, wide, None)  # type: ignore[arg-type]
    for suffix in ("npy", "jsonl"):
        export(tmp_path / f"out.{suffix}", [item], [])
    assert np.load(tmp_path / "out.npy").tolist() == [[0, 2, 4]]
    assert lines(tmp_path / "out.jsonl")[0]["vector"] == [0, 2, 4]


FAILED = FailedItem(2, None, "EMPTY_TEXT", "The text is empty.", None, {})


def test_an_old_error_file_goes_when_nothing_failed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl.gz"
    assert export(path, [], [FAILED]).errors_path == tmp_path / "out.errors.jsonl"
    assert names(tmp_path) == ["out.errors.jsonl", "out.jsonl.gz"]
    assert export(path, [], []).errors_path is None
    assert names(tmp_path) == ["out.jsonl.gz"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_results_take_no_old_results_place(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    export(path, [vector(1, 2)], [FAILED])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    other = FailedItem(7, None, "EMPTY_TEXT", "The text is empty.", None, {})
    for failed in ([], [other]):
        done = export(path, [], failed, keep_old=True)
        assert (done.items, done.errors, done.is_written) == (0, len(failed), False)
        errors = tmp_path / "out.errors.jsonl"
        assert [line["position"] for line in lines(errors)] == [7 if failed else 2]
        found = {file: file.read_bytes() for file in tmp_path.iterdir()}
        assert found | {errors: before[errors]} == before


def test_failures_are_written_where_no_vector_tells_a_size(tmp_path: Path) -> None:
    done = export(tmp_path / "out.npy", [], [FAILED], keep_old=True)
    assert not done.is_written
    assert names(tmp_path) == ["out.errors.jsonl"]


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".npy"]
)
@pytest.mark.parametrize("where", ["at once", "on the way", "in the errors"])
@pytest.mark.parametrize("raised", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_exception_leaves_the_old_files_and_nothing_else(
    suffix: str, where: str, raised: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / f"out{suffix}"
    export(path, [vector(1, 2)], [FAILED])
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def items() -> Iterator[Produced]:
        if where == "at once":
            raise raised
        yield from [vector(3, 4)] * 20_000
        if where == "on the way":
            raise raised

    def failed() -> Iterator[FailedItem]:
        yield FAILED
        raise raised

    with pytest.raises(raised):
        export(path, items(), failed())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zst", ".parquet", ".csv", ".npy"])
def test_a_full_disk_is_told_and_leaves_nothing(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportFailed, match=r"can't be written: No space left on device\.$"):
        export(path, [vector(1, 2)], [FAILED])
    assert names(tmp_path) == [path.name]
    assert path.read_bytes() == b"old"


def test_files_are_synced_before_they_get_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, Path.replace

    def noted_sync(handle: int) -> None:
        steps.append("folder" if os.fstat(handle).st_mode & 0o40000 else "file")
        sync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        assert not target.exists()
        assert self.parent == target.parent
        steps.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    export(tmp_path / "out.npy", [vector(1)], [])
    assert steps[:2] == ["file", "file"]
    assert sorted(steps[2::2]) == ["out.ids.jsonl", "out.npy"]
    assert steps[3::2] == ["folder", "folder"]


def test_a_file_has_the_rights_that_new_files_have_and_a_link_stays(tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "out.jsonl")
    export(link, [vector(1)], [])
    assert link.is_symlink()
    made = tmp_path / "out.jsonl"
    assert len(lines(made)) == 1
    assert made.stat().st_mode == (tmp_path / "new").stat().st_mode


@pytest.mark.parametrize(
    ("items", "options", "reason"),
    [
        ([vector(1, 2)], {"count": 2}, "2 results were to be exported, and 1 came"),
        ([vector(1, 2)], {"count": 0}, "0 results were to be exported, and 1 came"),
    ],
)
@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".npy"])
def test_an_export_of_another_number_of_results_is_refused(
    items: list[Produced], options: dict[str, Any], reason: str, suffix: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportFailed, match=reason):
        export(tmp_path / f"out{suffix}", items, [], **options)
    assert names(tmp_path) == []


ENDLESS: dict[str, Any] = {}
ENDLESS["self"] = ENDLESS
COUNTED = {"model": "m", "finish_reason": "stop", "input_tokens": 1}
WITH_VECTOR, WITH_ANSWER = [".parquet", ".csv", ".npy"], [".parquet", ".csv"]


@pytest.mark.parametrize(
    ("good", "bad", "options", "reason", "suffixes"),
    [
        (vector(1, 2), vector(1, 2, 3), {}, "3 dimensions, and the others 2", WITH_VECTOR),
        (vector(1, 2), vector(1, 2), {"dimensions": 3}, "has 2 dimensions", WITH_VECTOR),
        (vector(1, 2), answer(), {}, "is (no vector|of another kind)", WITH_VECTOR),
        (answer(**COUNTED), vector(1, 2), {}, "of another kind", WITH_ANSWER),
        (answer(**COUNTED), answer(json=10**5_000), {}, "JSON can't hold", WITH_ANSWER),
        (answer(**COUNTED), answer(more=ENDLESS), {}, "JSON can't hold", [".jsonl", *WITH_ANSWER]),
        (answer(**COUNTED), answer(json={"a": {1}}), {}, "JSON can't hold", [".jsonl"]),
        (answer(**COUNTED), answer(input_tokens=2**63), {}, "'input_tokens'", [".parquet"]),
        (answer(**COUNTED), answer(output_tokens="many"), {}, "'output_tokens'", [".parquet"]),
        (answer(**COUNTED), answer(model={"a": 1}), {}, "'model'", [".parquet"]),
        (
            vector(1, 2),
            Produced(1, "a", {"n": 10**5_000}, "t", np.ones(2, np.float32), None),
            {},
            "JSON can't hold",
            [".jsonl", *WITH_VECTOR],
        ),
    ],
)
def test_what_a_format_cannot_hold_is_told_and_the_others_are_written(
    good: Produced,
    bad: Produced,
    options: dict[str, Any],
    reason: str,
    suffixes: list[str],
    tmp_path: Path,
) -> None:
    written = 2 if not options else 0
    for suffix in suffixes:
        path = tmp_path / f"out{suffix}"
        done = export(path, [good, bad, good], [FAILED], count=3, **options)
        assert (done.items, done.unwritten) == (written, 3 - written)
        assert done.errors == done.unwritten + 1
        *told, failed = lines(tmp_path / "out.errors.jsonl")
        assert failed["code"] == FAILED.code
        for one in told:
            assert (one["position"], one["code"]) == (1, "NOT_WRITABLE")
            assert re.search(reason, one["error"])
        if suffix == ".parquet":
            assert pq.read_table(path).num_rows == written
        elif suffix == ".npy":
            assert len(np.load(path)) == len(lines(done.ids_path or path)) == written
        elif suffix == ".csv":
            assert len(csv_rows(path)) == written
        else:
            assert len(lines(path)) == written


def test_an_array_has_no_answers(tmp_path: Path) -> None:
    with pytest.raises(ExportFailed, match="no vectors to write"):
        export(tmp_path / "out.npy", [answer(), vector(1, 2)], [])
    assert names(tmp_path) == []


def test_json_lines_hold_results_of_both_kinds(tmp_path: Path) -> None:
    export(tmp_path / "out.jsonl", [vector(1), answer(model="m")], [])
    one, other = lines(tmp_path / "out.jsonl")
    assert (one["vector"], other["answer"]) == ([1], {"text": "Hello", "model": "m"})


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("out", {}, "tells no format; name it .jsonl, .parquet, .npy, .csv, .ndjson, or .jsonl.gz"),
        ("out.gz", {}, "tells no format"),
        ("out.txt", {}, "tells no format"),
        ("out.npy.gz", {}, "A npy file is not compressed as a whole; drop .gz"),
        ("out.zst", {"format": ExportFormat.PARQUET}, "drop .zst"),
        ("nowhere/out.jsonl", {}, "There is no folder .*nowhere; make it first"),
        ("folder.jsonl", {}, "is a folder; name a file in it"),
        ("pipe.jsonl", {}, "is not a regular file"),
    ],
)
def test_a_place_that_takes_no_export_is_refused(
    name: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InvalidInput, match=reason):
        export(tmp_path / name, [], [], **options)
    assert names(tmp_path) == ["folder.jsonl", "pipe.jsonl"]


def test_a_format_that_is_named_needs_no_suffix(tmp_path: Path) -> None:
    export(tmp_path / "out", [vector(1)], [], format=ExportFormat.NPY)
    assert np.load(tmp_path / "out").tolist() == [[1]]


def test_a_dash_is_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written))
    done = export(Path("-"), [vector(0.1)], [FAILED])
    assert done == ExportSummary(1, 1, Path("-"), None, None)
    assert orjson.loads(written.getvalue())["vector"] == [0.1]
    assert not Path("-").exists()
    with pytest.raises(InvalidInput, match="Only JSON Lines"):
        export(Path("-"), [], [], format=ExportFormat.CSV)


@pytest.mark.parametrize(
    "suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", ".csv", ".npy"]
)
def test_memory_does_not_grow_with_the_results(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_writers, "GROUP_BYTES", 500_000)

    def items(count: int) -> Iterator[Produced]:
        for at in range(1, count + 1):
            yield Produced(at, f"item-{at}", {"n": at}, "words", np.full(64, at, np.float32), None)

    def failed(count: int) -> Iterator[FailedItem]:
        for at in range(1, count + 1):
            yield FailedItem(at, f"item-{at}", "EMPTY_TEXT", "The text is empty.", None, {})

    def peak(count: int) -> int:
        tracemalloc.start()
        export(tmp_path / f"out{suffix}", items(count), failed(count), with_input=True)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(10)  # pyarrow imports more as it is used
    assert peak(12_000) < peak(4_000) + 500_000  # 2 MB of vectors more


def test_what_is_compressed_is_known_before_it_is_written() -> None:
    assert set(COMPRESSIONS) == COMPRESSED
