"""The types of an export: results, failed items, and the summary."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from promptstack.config.errors import PromptStackError


class ExportFailed(PromptStackError):
    """The export couldn't be written; older files are unchanged."""

    code = "EXPORT_FAILED"


class NotWritable(PromptStackError):
    """One result can't be written in this format; the others can."""

    code = "NOT_WRITABLE"


class ExportFormat(StrEnum):
    """The format of an output."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    NPY = "npy"
    """Vectors only; their ids stand in a file beside them."""
    CSV = "csv"


@dataclass(frozen=True, slots=True)
class Produced:
    """A result: a vector or an answer, and the item it belongs to."""

    position: int
    custom_id: str
    metadata: dict[str, JsonValue]
    text: str | None
    """What was sent. Written only when asked for."""
    vector: npt.NDArray[np.float32] | None
    answer: dict[str, JsonValue] | None
    """`text`, `model`, `finish_reason`, `input_tokens`, `output_tokens` and whatever else; `json`
    where the answer was to be JSON."""


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item without a result, and why."""

    position: int
    custom_id: str | None
    code: str
    error: str
    detail: str | None
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class ExportSummary:
    """How many results were written, and where."""

    items: int
    errors: int
    """Failed items, and results that couldn't be written."""
    path: Path
    ids_path: Path | None
    """Beside a `.npy` file: whose vector each row is."""
    errors_path: Path | None
    """None where nothing failed."""
    is_written: bool = True
    """False where there were no results, and what was there before was left."""
    unwritten: int = 0
    """Results that the format can't hold; why stands among the errors."""
