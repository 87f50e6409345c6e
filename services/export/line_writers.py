"""Writes results and errors as lines of text: JSON Lines and CSV."""

import csv
from typing import Any, BinaryIO, Protocol

import numpy as np

from promptstack.services.export.cells import json_cell, text_cell
from promptstack.services.export.columns import JSON_COLUMNS, Shape, as_json, json_line
from promptstack.services.export.items import FailedItem, NotWritable, Produced


class Writer(Protocol):
    """Writes results one by one."""

    def write(self, item: Produced) -> None:
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


class Csv:
    """A header, then one row a result; values other than texts and numbers are JSON."""

    def __init__(self, file: BinaryIO, shape: Shape, *, guard_formulas: bool) -> None:
        self._shape = shape
        self._guard_formulas = guard_formulas
        self._rows = csv.DictWriter(_Encoded(file), shape.names)
        self._rows.writeheader()

    def write(self, item: Produced) -> None:
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
