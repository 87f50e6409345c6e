"""Reads text and Markdown files as documents."""

import os
from collections.abc import Iterator
from pathlib import Path

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.chunked_inputs import SOURCE
from promptstack.services.sources.jsonl import not_utf8
from promptstack.services.sources.opening import Origin, byte_blocks
from promptstack.services.sources.reading import (
    SUFFIXES,
    BadInput,
    BadRecord,
    Fault,
    Input,
    Reading,
)
from promptstack.services.sources.records import RecordCheck, checked_id
from promptstack.services.text import printable_path

SHOWN = 500
"""Characters shown of a name that can't be an id."""


def read_folder(path: Path, check: RecordCheck, reading: Reading) -> Iterator[Input | BadInput]:
    """Read each text file below a folder, in the order of their names, or a single file.

    The id of a document is its path within the folder. The metadata has it as `source` too.
    """
    position = 0
    for position, file in enumerate(_text_files(path) if path.is_dir() else [path], 1):
        name = str(file) if file == path else file.relative_to(path).as_posix()
        try:
            _check_utf_8(name)
            checked_id(name, SOURCE)
        except InvalidInput as error:
            fault = error.fault if isinstance(error, BadRecord) else Fault.NOT_STORABLE
            reason = f"The file's name is to be its id, and can't be. {error} Rename it."
            yield BadInput(position, printable_path(name)[:SHOWN], fault, reason)
            continue
        text = _text(Origin(file), position, name, reading.max_bytes)
        if isinstance(text, BadInput):
            yield text
            continue
        record = {SOURCE: name, check.first_id_name: name, check.first_text_name: text}
        yield check(position, record)
    if not position:
        raise InvalidInput(
            f"{printable_path(path)} holds no text files ({', '.join(sorted(SUFFIXES))})."
        )


def _check_utf_8(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput("It is not UTF-8.") from error


def _text_files(folder: Path) -> Iterator[Path]:
    """Walk through a folder in order. Memory holds the names of one path down only."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise InvalidInput(f"{printable_path(folder)} can't be read: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _text_files(Path(entry.path))
        elif Path(entry.name).suffix.lower() in SUFFIXES and _is_file(entry):
            yield Path(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return True  # a link that leads nowhere: reading it says why


def _text(origin: Origin, position: int, name: str, max_bytes: int) -> str | BadInput:
    content = bytearray()
    try:
        for block in byte_blocks(origin):
            content += block
            if len(content) > max_bytes:
                reason = f"The file has more than {max_bytes:,} bytes; split it."
                return BadInput(position, name, Fault.TOO_LONG, reason)
        return content.decode()
    except UnicodeDecodeError as error:
        return not_utf8(position, "The file", error, name)
    except InvalidInput as error:
        return BadInput(position, name, Fault.UNREADABLE, str(error))
