"""The way in: any source to a stream of checked inputs, in memory that doesn't grow with it."""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from services.errors import InvalidInput
from services.sources.iterables import read_iterable
from services.sources.jsonl import read_jsonl, read_lines
from services.sources.opening import Origin, byte_blocks
from services.sources.reading import BadInput, Fault, Format, Input, Reading
from services.sources.records import RecordCheck

__all__ = ["BadInput", "Fault", "Format", "Input", "Reading", "Source", "read_inputs"]

Source = str | Path | BinaryIO | Iterable[str | Mapping[str, Any]]
"""A path, `-` for standard input, a folder, a binary stream, or texts and records themselves."""

FORMATS = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".txt": Format.LINES,
    ".text": Format.LINES,
}


def read_inputs(source: Source, reading: Reading) -> Iterator[Input | BadInput]:
    """Read a source record by record.

    Raises `InvalidInput` at once for what can be told before the source is opened, and on the way
    where the source can't be read on. A record that is wrong is a `BadInput`, and hurts no other.
    """
    check = RecordCheck(reading)
    origin = _origin(source)
    if origin is None:
        return read_iterable(source, check)
    match _format(origin, reading):
        case Format.JSONL:
            return read_jsonl(byte_blocks(origin), check, reading.max_bytes)
        case Format.LINES:
            return read_lines(byte_blocks(origin), check, reading.max_bytes)
        case other:
            raise InvalidInput(f"{other} can't be read yet.")


def _origin(source: Any) -> Origin | None:
    match source:
        case "":
            raise InvalidInput('The path is empty; for this folder, give ".".')
        case "-":
            return Origin(None)
        case str() | Path():
            return Origin(Path(source))
        case io.TextIOBase():
            raise InvalidInput("The stream gives text, not bytes; open it in binary mode.")
        case bytes() | bytearray() | Mapping():
            raise InvalidInput("A source is a path, a binary stream or a list of records.")
        case _:
            return Origin(None, source) if hasattr(source, "read") else None


def _format(origin: Origin, reading: Reading) -> Format:
    if reading.format is not None:
        return reading.format
    if origin.suffix in FORMATS:
        return FORMATS[origin.suffix]
    if origin.path is None:
        return Format.JSONL
    raise InvalidInput(
        f"The suffix of {origin.name} tells no format; "
        f"name one of {', '.join(known.value for known in Format)}."
    )
