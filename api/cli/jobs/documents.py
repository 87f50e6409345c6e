"""Finds and reads the text and Markdown files of `promptstack embed`."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.checks import check_source
from promptstack.services.sources.opening import encoding_of
from promptstack.services.sources.reading import SUFFIXES


@dataclass(frozen=True)
class TextFile:
    """A file that can be embedded."""

    source: str
    text: str


def find_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files below `paths`, each once, in order. Raises `InvalidInput`."""
    found: dict[Path, None] = {}
    for name in paths:
        if name == "":
            raise InvalidInput('A path is empty; for this folder, give ".".')
        path = Path(name)
        _check_reachable(path)
        if path.is_dir():
            inside = _text_files(path)
            if not inside:
                raise InvalidInput(
                    f"{path} holds no text files ({', '.join(sorted(SUFFIXES))}); nothing to embed."
                )
            found.update(dict.fromkeys(inside))
        else:
            found[path.resolve()] = None
    return list(found)


def read_text(path: Path, max_bytes: int) -> TextFile:
    """Read a text file. Raises `InvalidInput`, which says what is wrong with it."""
    source = str(path)
    try:
        check_source(source)
    except InvalidInput as error:
        raise InvalidInput(f"The name {source!a} can't be kept. {error}") from error
    try:
        if not path.is_file():
            raise InvalidInput(f"{path} is not a regular file.")
        size = path.stat().st_size
        if size > max_bytes:
            raise InvalidInput(
                f"{path} has {size:,} bytes; at most {max_bytes:,} are accepted "
                "(MAX_TEXT_BYTES). Split it."
            )
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error
    encoding = encoding_of(content)
    try:
        text = content.removeprefix(encoding.mark).decode(encoding.name)
    except UnicodeDecodeError as error:
        at = error.start + len(encoding.mark)
        raise InvalidInput(
            f"{path} is not {encoding.name[:6].upper()} text (byte {content[at]:#04x} at {at}); "
            "convert it first."
        ) from error
    if "\x00" in text:
        raise InvalidInput(f"{path} is a binary file (it holds a NUL byte); only text is embedded.")
    if not text.strip():
        raise InvalidInput(f"{path} is empty; there is nothing to embed.")
    return TextFile(source, text)


def _check_reachable(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist.") from error
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}.") from error


def _text_files(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise InvalidInput(f"{error.filename} can't be read: {error.strerror}.") from error

    found = []
    # os.walk reports a folder that can't be read; Path.rglob skips it.
    for inside, folders, names in os.walk(folder.resolve(), onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        visible = (Path(inside, name) for name in names if not name.startswith("."))
        found += [path for path in visible if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found)
