"""A small source that expands to gigabytes is read in little memory, or refused."""

import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.inputs import BadInput, Format, Reading, read_inputs
from promptstack.services.sources.reading import SourceBounds
from tests.processes import PATIENCE, ROOT

MEGABYTE = 1_000_000
MUCH = 300 * MEGABYTE
READ = """
import json, resource, sys
from pathlib import Path
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.inputs import Reading, read_inputs
import promptstack.services.sources.parquet
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
for name in sys.argv[1:]:
    kinds = {}
    try:
        for one in read_inputs(Path(name), Reading()):
            kind = str(getattr(one, "code", "good"))
            kinds[kind] = kinds.get(kind, 0) + 1
            del one
    except InvalidInput as error:
        kinds = {str(error): 1}
    print(json.dumps([Path(name).stem, peak() - before, kinds]))
"""
ROWS = 400
LONG = "x" * MEGABYTE
TEXTS = pa.array([f"{number}" for number in range(ROWS)])
GOOD = {"good": ROWS}
NUMBERS = 20_000_000
DESCRIPTION = 17 * 1024 * 1024


def parquet(how: dict[str, Any] | None = None, **columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, compression="zstd", **(how or {}))
    return file.getvalue()


def repeated(value: Any) -> Any:
    return pa.DictionaryArray.from_arrays(pa.array([0] * ROWS, pa.int32()), pa.array([value]))


def lists(values: Any) -> Any:
    """All values in the first row's list, but one in each of the others."""
    first = len(values) - ROWS + 1
    return pa.ListArray.from_arrays(pa.array([0, *range(first, len(values) + 1)]), values)


def bombs() -> dict[str, bytes]:
    """All are small."""
    dictionary = pa.array([LONG])
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 4 * ROWS, pa.int32()), dictionary)
    one_page = {"use_dictionary": False, "data_page_size": 1_000 * MEGABYTE}
    prefixes = {
        "use_dictionary": False,
        "column_encoding": {"text": "DELTA_BYTE_ARRAY"},
        "write_batch_size": 50,
    }
    found = {
        "a text of all rows": parquet(text=repeated(LONG)),
        "a field of all rows": parquet(text=TEXTS, other=repeated(LONG)),
        "bytes of all rows": parquet(text=TEXTS, other=repeated(LONG.encode())),
        "texts that begin alike": parquet(
            prefixes, text=pa.array([f"{LONG}{number}" for number in range(ROWS)])
        ),
        "one text in many lists": parquet(text=TEXTS, other=lists(many)),
        "one long list": parquet(
            text=TEXTS, other=lists(pa.repeat(pa.scalar(7, pa.int64()), NUMBERS))
        ),
        "one large page": parquet(one_page, text=pa.array([LONG] * 500)),
        "a row of small cells": b"text\n" + b"a1," * 6_000_000 + b'\n"a, b"\n',
        "a header of small cells": b"text," + b"a1," * 6_000_000 + b"\n",
        "a line of small values": b'{"text": "a", "x": [' + b'{"a":[]},' * 2_500_000 + b"0]}\n"
        b'{"text": "' + b",[{" * 1_000_000 + b'"}\n',
        "a long description": b"PAR1"
        + bytes(DESCRIPTION)
        + struct.pack("<i", DESCRIPTION)
        + b"PAR1",
    }
    assert all(len(data) < 30 * MEGABYTE for data in found.values())
    return found


def suffix_of(data: bytes) -> str:
    if data.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if data.startswith(b"{") else "csv"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, dict[str, int]]]:
    """What a process came to that read all of them: how much it had grown, and what it read."""
    folder = tmp_path_factory.mktemp("bombs")
    paths = []
    for name, data in bombs().items():
        paths.append(folder / f"{name}.{suffix_of(data)}")
        paths[-1].write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", READ, *paths],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system"},
        timeout=PATIENCE,
    )
    lines = map(json.loads, done.stdout.splitlines())
    return {name: (grown, kinds) for name, grown, kinds in lines}


@pytest.mark.parametrize(
    "name",
    ["a text of all rows", "a field of all rows", "bytes of all rows", "texts that begin alike"],
)
def test_what_is_good_is_read_few_rows_at_a_time(
    seen: dict[str, tuple[int, dict[str, int]]], name: str
) -> None:
    grown, kinds = seen[name]
    assert kinds == GOOD
    assert grown < MUCH


def test_a_row_of_many_texts_that_is_too_long_hurts_no_other(
    seen: dict[str, tuple[int, dict[str, int]]],
) -> None:
    grown, kinds = seen["one text in many lists"]
    assert kinds == {"TOO_LONG": 1, "good": ROWS - 1}
    assert grown < MUCH


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a row of small cells", {"TOO_LONG": 1, "good": 1}),
        ("a line of small values", {"TOO_LONG": 1, "good": 1}),
    ],
)
def test_a_record_of_many_values_hurts_no_other(
    seen: dict[str, tuple[int, dict[str, int]]], name: str, expected: dict[str, int]
) -> None:
    grown, kinds = seen[name]
    assert kinds == expected
    assert grown < MUCH


def test_an_unclosed_quote_of_short_lines_is_read_up_to_the_bound() -> None:
    source = io.BytesIO(b'text\n"' + b"a\n" * 500_000)
    tracemalloc.start()
    [found] = read_inputs(source, Reading(Format.CSV, max_bytes=100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, BadInput)
    assert found.code == "BAD_CSV"
    assert peak < 8 * MEGABYTE


def test_a_table_of_many_columns_is_refused(
    seen: dict[str, tuple[int, dict[str, int]]],
) -> None:
    grown, kinds = seen["a header of small cells"]
    [told] = kinds
    assert "The row has more than 1,000,000 values" in told
    assert grown < MUCH


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("one long list", "has lists that expand in its column 'other.list.element'"),
        ("one large page", "has a page in its column 'text'"),
        ("a long description", "has a description of its groups of rows"),
    ],
)
def test_what_can_only_be_read_whole_is_refused_unread(
    seen: dict[str, tuple[int, dict[str, int]]], name: str, said: str
) -> None:
    grown, kinds = seen[name]
    [told] = kinds
    assert said in told
    assert "MAX_SOURCE_PART_BYTES" in told
    assert grown < MUCH


def test_a_dictionary_that_is_too_large_is_refused_before_it_is_unpacked() -> None:
    how = {"dictionary_pagesize_limit": 100 * MEGABYTE}
    source = io.BytesIO(parquet(how, text=repeated("x" * 30 * MEGABYTE)))
    reading = Reading(Format.PARQUET, bounds=SourceBounds(part_bytes=4 * MEGABYTE))
    tracemalloc.start()
    with pytest.raises(InvalidInput, match="has a page in its column 'text'"):
        list(read_inputs(source, reading))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MEGABYTE
