"""Reading the text and Markdown files that a person wants embedded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from services.errors import InvalidInput
from services.text import check_storable

SUFFIXES = frozenset({".md", ".markdown", ".mdx", ".rst", ".text", ".txt"})
"""What is read from a folder; a file that is named itself may have any suffix."""


@dataclass(frozen=True)
class TextFile:
    """A file that can be embedded."""

    source: str
    text: str


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Name the files below `paths`, each once, in order. Raises `InvalidInput`."""
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = list(_text_files(path))
            if not inside:
                raise InvalidInput(
                    f"{path} holds no text files ({', '.join(sorted(SUFFIXES))}); nothing to embed."
                )
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path.resolve()] = None
        else:
            raise InvalidInput(f"{path} does not exist.")
    return list(found)


def read_text(path: Path, max_bytes: int) -> TextFile:
    """Read a UTF-8 file. Raises `InvalidInput` that says what is wrong with it."""
    source = check_storable(str(path), "The file's name")
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
    if b"\x00" in content:
        raise InvalidInput(f"{path} is a binary file (it holds a NUL byte); only text is embedded.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path} is not UTF-8 text (byte {content[error.start]:#04x} at {error.start}); "
            "convert it first."
        ) from error
    if not text.strip():
        raise InvalidInput(f"{path} is empty; there is nothing to embed.")
    return TextFile(source, text)


def _text_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.resolve().rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder.resolve()).parts)
        if path.suffix.lower() in SUFFIXES and path.is_file() and not hidden:
            yield path
