"""What is read, and how: the words that the readers share."""

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
"""What is read from a folder; a file that is named itself may have any suffix."""


class Format(StrEnum):
    """How records lie in a source."""

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
    MISSING_FIELD = "MISSING_FIELD"
    NOT_STORABLE = "NOT_STORABLE"
    TOO_LONG = "TOO_LONG"
    UNREADABLE = "UNREADABLE"
    WRONG_TYPE = "WRONG_TYPE"


@dataclass(frozen=True, slots=True)
class Input:
    """A record that can be worked on: it has either a text or messages."""

    position: int
    """Number of the record in its source, from 1: the line where it starts in JSONL, text and CSV,
    the row in Parquet and lists, the running number where texts are cut into chunks."""
    custom_id: str
    text: str | None
    messages: list[dict[str, JsonValue]] | None
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class BadInput:
    """A record that can't be worked on, and why. The others are not hurt by it."""

    position: int
    custom_id: str | None
    code: str
    """One of `Fault`."""
    reason: str
    """A sentence that never quotes the text."""


@dataclass(frozen=True)
class SourceBounds:
    """How much a source may ask for beyond the length of its texts."""

    template_bytes: int = 1_000_000
    template_places: int = 1_000
    """Where fields are filled in."""
    record_values: int = 1_000_000
    """In one record, whatever they are nested in; also the columns of a table."""
    part_bytes: int = 67_108_864
    """Of what can only be held whole: the description of a Parquet file, or what a few packed
    bytes of it expand to."""


@dataclass(frozen=True)
class Reading:
    """How to read a source."""

    format: Format | None = None
    """None: as the name's suffix says, also `.jsonl.gz` or `.csv.zst`."""
    text_column: str | None = None
    """None: `text`, else `prompt`."""
    id_column: str | None = None
    """None: `custom_id`, else `id`, else the position."""
    columns: tuple[str, ...] | None = None
    """Which fields are kept as metadata. None: all but the text and the id."""
    template: str | None = None
    """What the text is made of: `Summarise: {text}`, with fields of the record in braces."""
    max_bytes: int = 10_000_000
    """The longest text, in UTF-8 bytes."""
    chunk_tokens: int | None = None
    """Cut each text into chunks of at most so many tokens, each an input of its own."""
    chunk_overlap_tokens: int | None = None
    """How much of a chunk the next one may begin with. None: an eighth of `chunk_tokens`."""
    text_tokens: int | None = None
    """What the model takes at most, where that is known; its chunks are no longer."""
    tokenizer: Path | None = None
    """The model's own tokenizer, by which chunks are cut."""
    bounds: SourceBounds = SourceBounds()

    def __post_init__(self) -> None:
        if self.max_bytes < 1:
            raise InvalidInput("Texts must be allowed at least one byte.")
        if self.chunk_tokens is None and self.chunk_overlap_tokens is not None:
            raise InvalidInput("Chunks can overlap only where a size of chunks is given.")


class BadRecord(InvalidInput):
    """One record can't be taken. Readers turn it into a `BadInput` and go on."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(reason)
        self.fault = fault
