"""Results and errors as lines of text: JSON Lines and CSV."""

import csv
from typing import Any, BinaryIO, Protocol

import numpy as np

from promptstack.services.export.cells import json_cell, text_cell
from promptstack.services.export.columns import JSON_COLUMNS, Shape, as_json, json_line
from promptstack.services.export.items import FailedItem, NotWritable, Produced


class Writer(Protocol):
    """Writes results as they come."""

    def write(self, item: Produced) -> None:
        """Write one result, or nothing of it. Raises `NotWritable`."""

    def finish(self) -> None:
        """Write what comes last. Who opened the file closes it."""

    def abandon(self) -> None:
        """Let go of what isn't written: the file will be thrown away."""


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
        """Nothing comes last."""

    def abandon(self) -> None:
        """Nothing is held."""


class Csv:
    """A header and a row a result; what is no text and no number stands there as JSON."""

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
        """Nothing comes last."""

    def abandon(self) -> None:
        """Nothing is held."""


class ErrorLines:
    """What failed, one JSON object a line."""

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
    """Whose a result is, with what was sent if it was asked for."""
    line: dict[str, Any] = {
        "position": item.position,
        "custom_id": item.custom_id,
        "metadata": item.metadata,
    }
    if with_input:
        line["text"] = item.text
    return line


class _Encoded:
    """Text for a file of bytes; unlike `TextIOWrapper`, it doesn't close the file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        return self._file.write(text.encode())
