"""The types of an export: results, failed items, and the summary."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

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
