"""Writes results and errors as lines of text: JSON Lines and CSV."""

import csv
import re
from typing import Any, BinaryIO, Generic, Protocol

import numpy as np

from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.services.export.columns import (
    JSON_COLUMNS,
    Columns,
    Row,
    Row_contra,
    as_json,
    json_line,
)
from promptstack.services.export.items import NotWritable

FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""With these a spreadsheet begins a formula, which may fetch an address or start a program; the
last four are their wide forms."""
GUARD = "'"
"""A spreadsheet takes what follows for a text."""
_CONTROLS = re.compile(r"\r\n|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def text_cell(text: str, *, guarded: bool) -> str:
    r"""Return a text for a cell: control characters as `\x1b`, formulas disarmed if `guarded`.

    Tabs and ends of lines stay. JSON Lines and Parquet keep every character.
    """
    guard = GUARD if guarded and text[:1] in FORMULA_STARTS else ""
    return guard + _CONTROLS.sub(_as_hex, text)


def json_cell(text: str) -> str:
    """Return JSON for a cell: the same JSON, without the control characters that it may have.

    It begins as a formula does where it is a negative number, and then it is none.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _as_hex(found: re.Match[str]) -> str:
    control = found.group()
    return control if control == "\r\n" else f"\\x{ord(control):02x}"


class Writer(Protocol[Row_contra]):
    """Writes results, or failed items, one by one."""

    def write(self, item: Row_contra) -> None:
        """Write one result whole, or none of it. Raises `NotWritable`."""

    def finish(self) -> None:
        """Write the end of the file. The caller closes the file."""

    def abandon(self) -> None:
        """Drop what isn't written yet: the file will be removed."""


class JsonLines:
    """One JSON object a line."""

    def __init__(self, file: BinaryIO, *, with_input: bool) -> None:
        self._file = file
        self._with_input = with_input

    def write(self, item: Produced) -> None:
        """Write one line."""
        line = identity(item, with_input=self._with_input)
        if item.vector is not None:
            line["vector"] = np.ascontiguousarray(item.vector, dtype=np.float32)
        if item.answer is not None:
            line["answer"] = item.answer
        self._file.write(json_line(line))

    def finish(self) -> None:
        """Nothing to do."""

    def abandon(self) -> None:
        """Nothing to do."""


class Csv(Generic[Row]):
    """A header, then one row a result; values other than texts and numbers are JSON."""

    def __init__(
        self,
        file: BinaryIO,
        shape: Columns[Row],
        *,
        guard_formulas: bool,
        with_header: bool = True,
    ) -> None:
        self._shape = shape
        self._guard_formulas = guard_formulas
        self._rows = csv.DictWriter(_Encoded(file), shape.names)
        if with_header:
            self._rows.writeheader()

    def write(self, item: Row) -> None:
        """Write one row."""
        row = self._shape.row(item)
        if row.get("vector") is not None:
            row["vector"] = as_json(row["vector"])
        self._rows.writerow({name: self._cell(name, value) for name, value in row.items()})

    def _cell(self, name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if name in JSON_COLUMNS:
            return json_cell(value)
        return text_cell(value, guarded=self._guard_formulas)

    def finish(self) -> None:
        """Nothing to do."""

    def abandon(self) -> None:
        """Nothing to do."""


class ErrorLines:
    """Failed items, one JSON object a line."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, item: FailedItem) -> None:
        """Write one line."""
        line = {
            "position": item.position,
            "custom_id": item.custom_id,
            "code": item.code,
            "error": item.error,
            "detail": item.detail,
            "metadata": item.metadata,
        }
        try:
            self._file.write(json_line(line))
        except NotWritable:
            self._file.write(json_line({**line, "metadata": {}}))

    def finish(self) -> None:
        """Nothing to do."""

    def abandon(self) -> None:
        """Nothing to do."""


def identity(item: Produced, *, with_input: bool) -> dict[str, Any]:
    """Return the id and metadata of a result, with its input if that was asked for."""
    line: dict[str, Any] = {
        "position": item.position,
        "custom_id": item.custom_id,
        "metadata": item.metadata,
    }
    if with_input:
        line["text"] = item.text
    return line


class _Encoded:
    """Writes text to a file of bytes. Unlike `TextIOWrapper`, it doesn't close the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())
