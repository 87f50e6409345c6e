"""Reads any source as a stream of checked inputs. Memory does not grow with the source."""

import io
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from promptstack.services.documents.chunking import Chunker
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.batch_lines import Placed, records_of_items, records_of_lines
from promptstack.services.sources.chunked_inputs import Cutter, whole_texts
from promptstack.services.sources.folders import read_folder
from promptstack.services.sources.jsonl import read_jsonl, read_lines
from promptstack.services.sources.opening import Origin, byte_blocks
from promptstack.services.sources.parquet import read_parquet
from promptstack.services.sources.python_records import read_iterable
from promptstack.services.sources.reading import (
    BadInput,
    Fault,
    Format,
    Input,
    Reading,
    Source,
    SourceBounds,
)
from promptstack.services.sources.records import RecordCheck, Unfold, as_it_is
from promptstack.services.sources.tables import read_csv
from promptstack.services.text import printable_path

__all__ = ["BadInput", "Fault", "Format", "Input", "Reading", "Source", "read_inputs"]

FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    **dict.fromkeys((".csv", ".tsv", ".tab"), Format.CSV),
    ".parquet": Format.PARQUET,
    ".txt": Format.LINES,
    ".text": Format.LINES,
    **dict.fromkeys((".md", ".markdown", ".mdx", ".rst"), Format.FOLDER),
}

T = TypeVar("T")


@dataclass
class Opened:
    """A source whose first blocks were already read."""

    origin: Origin
    blocks: Iterator[bytes]


def looked_at(source: Source, reading: Reading) -> tuple[Source | Opened, Iterator[Placed]]:
    """Return the source to read, and its first records if they may be requests to OpenAI.

    Drop the records before you read the source. Raises `InvalidInput`.
    """
    if reading.text_column is not None or reading.template is not None:
        return source, iter(())
    origin = _origin(source, reading.bounds)
    if origin is None:
        items: Any = source
        first, rest = _twice(iter(items))
        return rest, records_of_items(first)
    if _format(origin, reading) is not Format.JSONL:
        return source, iter(())
    first, blocks = _twice(byte_blocks(origin))
    return Opened(origin, blocks), records_of_lines(first, reading)


def _twice(parts: Iterator[T]) -> tuple[Iterator[T], Iterator[T]]:
    """Return an iterator for a first look, and one that yields all parts from the start."""
    held: deque[T] = deque()  # not `tee`, which frees parts only by the dozen

    def first() -> Iterator[T]:
        for part in parts:
            held.append(part)
            yield part

    def whole() -> Iterator[T]:
        while held:
            yield held.popleft()
        yield from parts

    return first(), whole()


def read_inputs(
    source: Source | Opened, reading: Reading, unfold: Unfold = as_it_is
) -> Iterator[Input | BadInput]:
    """Read a source record by record; `unfold` turns a request into an ordinary record.

    A bad record becomes a `BadInput`; the records after it are read. Raises `InvalidInput` before
    the source is opened if the arguments are wrong, and later if the source can't be read on.
    """
    whole = reading if reading.chunk_tokens is None else whole_texts(reading)
    check = RecordCheck(whole, unfold)
    if isinstance(source, Opened):
        found = read_jsonl(source.blocks, check, reading)
    else:
        found = _records(source, reading, check)
    if reading.chunk_tokens is None:
        return found
    chunker = Chunker(reading.chunk_tokens, reading.chunk_overlap_tokens, reading.tokenizer)
    return Cutter(reading, chunker.taken_by(reading.text_tokens)).cut(found)


def _records(source: Source, reading: Reading, check: RecordCheck) -> Iterator[Input | BadInput]:
    origin = _origin(source, reading.bounds)
    if origin is None:
        return read_iterable(source, check)
    match _format(origin, reading):
        case Format.JSONL:
            return read_jsonl(byte_blocks(origin), check, reading)
        case Format.CSV:
            return read_csv(origin.name, byte_blocks(origin), check, reading)
        case Format.PARQUET:
            return read_parquet(origin, check, reading)
        case Format.LINES:
            return read_lines(byte_blocks(origin), check, reading)
        case Format.FOLDER:
            if origin.path is None:
                raise InvalidInput(f"{origin.name} is no folder and no file; name its format.")
            return read_folder(origin.path, check, reading)


def _origin(source: Any, bounds: SourceBounds) -> Origin | None:
    match source:
        case "":
            raise InvalidInput('The path is empty; for this folder, give ".".')
        case "-":
            return Origin(None, bounds=bounds)
        case str() | Path():
            return Origin(_there(Path(source)), bounds=bounds)
        case io.TextIOBase():
            raise InvalidInput("The stream gives text, not bytes; open it in binary mode.")
        case bytes() | bytearray() | Mapping():
            raise InvalidInput("A source is a path, a binary stream or a list of records.")
        case _:
            return Origin(None, source, bounds) if hasattr(source, "read") else None


def _there(path: Path) -> Path:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InvalidInput(f"{printable_path(path)} does not exist.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "its name is no file's name"
        raise InvalidInput(f"{printable_path(path):.200} can't be read: {why}.") from error
    return path


def _format(origin: Origin, reading: Reading) -> Format:
    if origin.path is not None and origin.path.is_dir():
        if reading.format not in {None, Format.FOLDER}:
            raise InvalidInput(f"{origin.name} is a folder; name a file in it.")
        return Format.FOLDER
    if reading.format is not None:
        return reading.format
    found = FORMATS.get(origin.suffix)
    if found is Format.LINES and reading.chunk_tokens is not None and origin.path is not None:
        return Format.FOLDER  # a text that is to be cut does not stand on one line
    if found is not None:
        return found
    if origin.path is None:
        return Format.JSONL
    raise InvalidInput(
        f"The suffix of {origin.name} tells no format; "
        f"name one of {', '.join(known.value for known in Format)}."
    )
