"""Checks the paths of an export: before anything is paid for, and again before writing."""

import os
import sys
import tempfile
from pathlib import Path

from promptstack.services.errors import InvalidInput
from promptstack.services.export.items import ExportFormat

STANDARD_OUTPUT = Path("-")
FORMATS = {f".{known.value}": known for known in ExportFormat} | {".ndjson": ExportFormat.JSONL}
COMPRESSED = frozenset({".gz", ".zst"})
LINED = frozenset({ExportFormat.JSONL, ExportFormat.CSV})
"""Formats that may be compressed as a whole; Parquet is within, and NumPy reads none."""


def check_output(
    path: Path,
    asked: ExportFormat | None = None,
    *,
    has_vectors: bool,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> None:
    """Raise `InvalidInput` if results can't be written there, or would replace a file.

    No output may be `source`, the file of the inputs (`-` is standard input). An existing file is
    refused unless `overwrite`.
    """
    kind = format_of(path, asked)
    if kind is ExportFormat.NPY and not has_vectors:
        raise InvalidInput("Answers are no vectors, and .npy holds only those; choose .jsonl.")
    if path == STANDARD_OUTPUT:
        return
    try:
        files = files_of(path, kind)
        for file in files:
            if source is not None and _is_source(file, source):
                raise InvalidInput(f"{file} is the source and would be lost; name another output.")
        check_place(path)
        for file in files:
            _check_free(file, overwrite=overwrite)
            with tempfile.TemporaryFile(dir=file.resolve().parent):
                pass
    except OSError as error:
        raise InvalidInput(f"{path} can't be written: {error.strerror}.") from error


def format_of(path: Path, asked: ExportFormat | None) -> ExportFormat:
    """Return the wanted format, else the format of the suffix. Raises `InvalidInput`."""
    if path == STANDARD_OUTPUT:
        if asked not in {None, ExportFormat.JSONL}:
            raise InvalidInput("Only JSON Lines goes to standard output; name a file.")
        return ExportFormat.JSONL
    compressed = path.suffix.lower() in COMPRESSED
    inner = Path(path.stem) if compressed else path
    kind = asked or FORMATS.get(inner.suffix.lower())
    if kind is None:
        raise InvalidInput(
            f"The suffix of {path} tells no format; name it {', '.join(FORMATS)}, "
            "or .jsonl.gz, or .jsonl.zst."
        )
    if compressed and kind not in LINED:
        raise InvalidInput(f"A {kind} file is not compressed as a whole; drop {path.suffix}.")
    return kind


def files_of(path: Path, kind: ExportFormat) -> list[Path]:
    """Return all files that an export may write: the output, and those beside it."""
    files = [path, beside(path, "errors")]
    return [*files, beside(path, "ids")] if kind is ExportFormat.NPY else files


def check_place(path: Path) -> None:
    """Raise `InvalidInput` if no file can be created at the path."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise InvalidInput(f"{path} is not a regular file; for standard output, give '-'.")
    if not path.parent.is_dir():
        raise InvalidInput(f"There is no folder {path.parent}; make it first.")


def beside(path: Path, what: str) -> Path:
    """Return the path of a file beside the output."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return path.with_name(f"{Path(name).stem}.{what}.jsonl")


def _is_source(file: Path, source: str | Path) -> bool:
    try:
        if source == "-":
            return os.path.samestat(os.fstat(sys.stdin.fileno()), file.stat())
        return file.resolve() == Path(source).resolve() or file.samefile(source)
    except (OSError, ValueError):
        return False  # one of them isn't there, or is no file: reading and writing say so


def _check_free(file: Path, *, overwrite: bool) -> None:
    if file.is_dir():
        raise InvalidInput(f"{file} is a folder, and a file of that name would be written.")
    if not overwrite and file.exists():
        raise InvalidInput(f"{file} exists already; name another output or give --overwrite.")
