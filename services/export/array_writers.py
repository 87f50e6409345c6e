"""Writes results as Parquet and NumPy arrays, some rows at a time."""

import io
from contextlib import suppress
from typing import Any, BinaryIO, Generic

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from promptstack.repositories.runs.results import Produced
from promptstack.services.export.columns import Columns, Row, checked_vector, json_line
from promptstack.services.export.items import NotWritable
from promptstack.services.export.line_writers import identity

GROUP_BYTES = 16_777_216
GROUP_ROWS = 10_000
MOST_INT64 = 2**63 - 1
WHOLE_NUMBERS = frozenset({"position", "input_tokens", "output_tokens"})
"""Columns of Parquet; the others but the vector are strings."""


class Parquet(Generic[Row]):
    """One row a result, in groups of rows; metadata and other structures are JSON."""

    def __init__(self, file: BinaryIO, shape: Columns[Row]) -> None:
        self._shape = shape
        self._kinds = {
            name: pa.int64() if name in WHOLE_NUMBERS else pa.string() for name in shape.names
        }
        if shape.dimensions is not None:
            self._kinds["vector"] = pa.list_(pa.float32(), shape.dimensions)
        self._writer = pq.ParquetWriter(
            file,
            pa.schema(list(self._kinds.items())),
            compression="zstd",
            use_dictionary=[name for name in ("model", "finish_reason") if name in self._kinds],
        )
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, item: Row) -> None:
        """Keep one row; write the rows when they fill a group."""
        row = self._shape.row(item)
        for name in row.keys() - {"vector"}:
            _check_fits(name, row[name])
        self._rows.append(row)
        self._bytes += sum(_size(value) for value in row.values())
        if self._bytes >= GROUP_BYTES or len(self._rows) >= GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        """Write the last rows and the footer."""
        self._write_group()
        self._writer.close()

    def abandon(self) -> None:
        """Close the writer now: later it would write to a closed file."""
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()

    def _write_group(self) -> None:
        if not self._rows:
            return
        columns = {
            name: self._vectors()
            if name == "vector"
            else pa.array([row[name] for row in self._rows], kind)
            for name, kind in self._kinds.items()
        }
        self._writer.write_table(pa.table(columns), row_group_size=len(self._rows))
        self._rows.clear()
        self._bytes = 0

    def _vectors(self) -> Any:
        size = self._shape.dimensions or 0
        found = [row["vector"] for row in self._rows]
        missing = np.array([vector is None for vector in found])
        nothing = np.zeros(size, np.float32)
        flat = np.concatenate([nothing if vector is None else vector for vector in found])
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), size, mask=pa.array(missing))


class Npy:
    """Vectors as rows of a NumPy array, with a file of ids beside it."""

    def __init__(self, file: BinaryIO, ids: BinaryIO, dimensions: int, *, with_input: bool) -> None:
        self._file = file
        self._ids = ids
        self._dimensions = dimensions
        self._with_input = with_input
        self._count = 0
        self._file.write(npy_header(0, dimensions))

    def write(self, item: Produced) -> None:
        """Write one vector and one id."""
        vector = checked_vector(item, self._dimensions)
        self._ids.write(json_line(identity(item, with_input=self._with_input)))
        self._file.write(vector.data)
        self._count += 1

    def finish(self) -> None:
        """Write the number of rows into the header."""
        self._file.seek(0)
        self._file.write(npy_header(self._count, self._dimensions))

    def abandon(self) -> None:
        """Nothing to do."""


def npy_header(rows: int, dimensions: int) -> bytes:
    """Return the header of an array. It has the same size for any number of rows."""
    header = io.BytesIO()
    # NumPy leaves room for the first axis to grow.
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (rows, dimensions)}
    )
    return header.getvalue()


def _check_fits(name: str, value: Any) -> None:
    """Raise `NotWritable` for a value that the Parquet column can't hold."""
    fits = isinstance(value, str)
    if name in WHOLE_NUMBERS:
        fits = isinstance(value, int) and abs(value) <= MOST_INT64
    if value is not None and not fits:
        raise NotWritable(f"Its '{name}' does not fit into Parquet's column; choose JSON Lines.")


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, str) else 8
