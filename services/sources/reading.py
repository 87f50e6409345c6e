"""The types that all readers share: formats, inputs, faults and options."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import JsonValue

from promptstack.services.errors import InvalidInput

Source = str | Path | BinaryIO | Iterable[str | Mapping[str, Any]]
"""A path, `-` for standard input, a folder, a binary stream, or texts and records themselves."""


SUFFIXES = frozenset({".md", ".markdown", ".mdx", ".rst", ".text", ".txt"})
"""Files that are read from a folder. A single file may have any suffix."""


class Format(StrEnum):
    """The format of a source."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"
    LINES = "lines"
    """Each line is a text."""
    FOLDER = "folder"
    """Each text or Markdown file is a document; also one such file by itself."""


class Fault(StrEnum):
    """What can be wrong with one record."""

    BAD_ENCODING = "BAD_ENCODING"
    BAD_JSON = "BAD_JSON"
    BAD_CSV = "BAD_CSV"
    BAD_ID = "BAD_ID"
    CONFLICT = "CONFLICT"
    EMPTY_TEXT = "EMPTY_TEXT"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_METHOD = "INVALID_METHOD"
    INVALID_URL = "INVALID_URL"
    MISMATCHED_MODEL = "MISMATCHED_MODEL"
    MISSING_FIELD = "MISSING_FIELD"
    NOT_STORABLE = "NOT_STORABLE"
    TOO_LONG = "TOO_LONG"
    UNREADABLE = "UNREADABLE"
    WRONG_TYPE = "WRONG_TYPE"


@dataclass(frozen=True, slots=True)
class Input:
    """A good record: it has either a text or messages."""

    position: int
    """Number of the record in its source, from 1: the line where it starts (JSONL, text, CSV), the
    row (Parquet, lists), or a running number (texts that are cut into chunks)."""
    custom_id: str
    text: str | None
    messages: list[dict[str, JsonValue]] | None
    metadata: dict[str, JsonValue]
    own: Any = None
    """What its request asks for that the run doesn't, as `BatchLines` has planned it."""


@dataclass(frozen=True, slots=True)
class BadInput:
    """A bad record, and why it is bad."""

    position: int
    custom_id: str | None
    code: str
    """One of `Fault`."""
    reason: str
    """A sentence that never quotes the text."""
    pointer: str = ""
    """To the field at fault, where it is known."""


@dataclass(frozen=True)
class SourceBounds:
    """Bounds of a source besides the length of its texts."""

    template_bytes: int = 1_000_000
    template_places: int = 1_000
    """Most fields that a template fills in."""
    record_values: int = 1_000_000
    """Most values in one record, at any depth; also the most columns of a table."""
    part_bytes: int = 67_108_864
    """Most bytes of what must be held whole: a Parquet file's description, or a page of it,
    unpacked."""
    unpacked_bytes: int | None = None
    """Most bytes of the whole source, unpacked. None: as many as it has."""
    seconds: float | None = None
    """Most time that reading it takes. None: as long as it takes."""
    blank_lines: int | None = None
    """Most lines without a record. None: as many as it has. Packed, a million take a kilobyte."""

    def check_blank(self, lines: int) -> None:
        """Raise `InvalidInput` where there are more lines without a record than there may be."""
        if self.blank_lines is not None and lines > self.blank_lines:
            raise InvalidInput(
                f"The source has more than {self.blank_lines:,} blank lines (MAX_RUN_ITEMS); leave "
                "them out."
            )


@dataclass(frozen=True)
class Reading:
    """How to read a source."""

    format: Format | None = None
    """None: by the suffix of the name, such as `.csv` or `.jsonl.gz`."""
    text_column: str | None = None
    """None: `text`, else `prompt`."""
    id_column: str | None = None
    """None: `custom_id`, else `id`, else the position."""
    columns: tuple[str, ...] | None = None
    """Fields to keep as metadata. None: all but the text and the id."""
    template: str | None = None
    """The text, with fields of the record in braces: `Summarise: {text}`."""
    max_bytes: int = 10_000_000
    """The longest text, in UTF-8 bytes."""
    chunk_tokens: int | None = None
    """Cut each text into chunks of at most this many tokens; each chunk is an input."""
    chunk_overlap_tokens: int | None = None
    """Most tokens that a chunk repeats from the one before. None: an eighth of `chunk_tokens`."""
    text_tokens: int | None = None
    """Most tokens that the model takes, if that is known; no chunk is longer."""
    tokenizer: Path | None = None
    """File of the model's own tokenizer, which measures the chunks."""
    bounds: SourceBounds = SourceBounds()

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise InvalidInput("Texts must be allowed at least one byte.")
        if self.chunk_tokens is None and self.chunk_overlap_tokens is not None:
            raise InvalidInput("Chunks can overlap only where a size of chunks is given.")


class BadRecord(InvalidInput):
    """One record is bad. Readers turn it into a `BadInput` and go on."""

    def __init__(self, fault: Fault, reason: str, *, pointer: str = "") -> None:
        super().__init__(reason, pointer=pointer)
        self.fault = fault
