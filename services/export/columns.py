"""Turns results into rows of a table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.services.export.items import NotWritable
from promptstack.services.validation.json_text import dump_json

PLAIN_ANSWER = ("model", "finish_reason", "input_tokens", "output_tokens")
"""Fields of an answer with a column of their name."""
ANSWER = ("answer", *PLAIN_ANSWER, "json", "details")
JSON_COLUMNS = frozenset({"metadata", "vector", "json", "details"})


Row = TypeVar("Row", bound=Produced | FailedItem)
Row_contra = TypeVar("Row_contra", bound=Produced | FailedItem, contravariant=True)


class Columns(Protocol[Row_contra]):
    """The columns of a table, and how one of its rows is made."""

    @property
    def names(self) -> Sequence[str]:
        """The columns in order."""

    @property
    def dimensions(self) -> int | None:
        """How many numbers a vector has; None where there are no vectors."""

    def row(self, item: Row_contra) -> dict[str, Any]:
        """Return a row by the names of its columns. Raises `NotWritable`."""


@dataclass(frozen=True)
class Shape:
    """The columns of a table of results."""

    with_input: bool
    with_answer: bool
    dimensions: int | None
    """None: there are no vectors."""

    @property
    def names(self) -> list[str]:
        """The columns in order."""
        names = ["position", "custom_id", "metadata"]
        names += ["text"] if self.with_input else []
        names += ["vector"] if self.dimensions is not None else []
        names += ANSWER if self.with_answer else ()
        return names

    def row(self, item: Produced) -> dict[str, Any]:
        """Return the row of a result; its vector is an array. Raises `NotWritable`."""
        row: dict[str, Any] = {
            "position": item.position,
            "custom_id": item.custom_id,
            "metadata": as_json(item.metadata),
        }
        if self.with_input:
            row["text"] = item.text
        if self.dimensions is not None:
            row["vector"] = None if item.vector is None else checked_vector(item, self.dimensions)
        elif item.vector is not None:
            raise _unlike(item)
        if self.with_answer:
            row |= _answer(item.answer or {})
        elif item.answer is not None:
            raise _unlike(item)
        return row


class FailureColumns:
    """The columns of a table of failed items."""

    names = ("position", "custom_id", "code", "error", "detail", "metadata")
    dimensions = None

    def row(self, item: FailedItem) -> dict[str, Any]:
        """Return the row of a failed item. Raises `NotWritable`."""
        row = {name: getattr(item, name) for name in self.names}
        return row | {"metadata": as_json(item.metadata)}


def checked_vector(item: Produced, dimensions: int) -> npt.NDArray[np.float32]:
    """Return the vector. Raises `NotWritable` if it has another size."""
    if item.vector is None:
        raise NotWritable(
            f"The result at position {item.position} is no vector; choose another format."
        )
    vector = np.ascontiguousarray(item.vector, dtype=np.float32)
    if vector.shape != (dimensions,):
        raise NotWritable(
            f"The vector at position {item.position} has {vector.size:,} dimensions, and the "
            f"others {dimensions:,}."
        )
    return vector


def as_json(value: Any) -> str:
    """Return a value as JSON; floats with enough digits to be read back exactly."""
    return json_line(value, newline=False).decode()


def json_line(value: Any, *, newline: bool = True) -> bytes:
    """Return a value as a line of JSON. Raises `NotWritable`."""
    try:
        return dump_json(value, newline=newline)
    except (TypeError, ValueError, RecursionError) as error:
        raise NotWritable("It has a value that JSON can't hold.", detail=str(error)) from error


def _answer(answer: dict[str, Any]) -> dict[str, Any]:
    others = {
        name: value for name, value in answer.items() if name not in {"text", "json", *PLAIN_ANSWER}
    }
    return {
        "answer": answer.get("text"),
        **{name: answer.get(name) for name in PLAIN_ANSWER},
        "json": as_json(answer["json"]) if "json" in answer else None,
        "details": as_json(others) if others else None,
    }


def _unlike(item: Produced) -> NotWritable:
    return NotWritable(
        f"The result at position {item.position} is of another kind than those before it; "
        "only JSON Lines holds both."
    )
