"""The way out: results and errors to files, in memory that doesn't grow with them."""

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from services.export.array_writers import Npy, Parquet
from services.export.atomic import AtomicFiles
from services.export.columns import Shape
from services.export.items import (
    ExportFailed,
    ExportFormat,
    ExportSummary,
    FailedItem,
    Produced,
)
from services.export.line_writers import Csv, ErrorLines, JsonLines, Writer
from services.export.places import STANDARD_OUTPUT, beside, check_place, format_of

__all__ = [
    "ExportFailed",
    "ExportFormat",
    "ExportSummary",
    "FailedItem",
    "Produced",
    "export",
]

T = TypeVar("T")


def export(
    path: Path,
    produced: Iterable[Produced],
    errors: Iterable[FailedItem],
    *,
    format: ExportFormat | None = None,  # noqa: A002  # as the option is called
    dimensions: int | None = None,
    count: int | None = None,
    with_input: bool = False,
    keep_old: bool = False,
    guard_formulas: bool = True,
) -> ExportSummary:
    """Write results in the order they come in, and what failed to `<stem>.errors.jsonl` beside.

    `format` None goes by the suffix. `dimensions` None are those of the first vector. `count` says
    how many results there must be, and None that any number is right. `-` is standard output, in
    JSON Lines; errors are only counted then. With `keep_old`, an old output stays where
    there are no results; only errors are written then. With `guard_formulas`, a text in CSV that a
    spreadsheet would take for a formula begins with an apostrophe.

    All files appear together and whole, or the old ones stay as they are.
    """
    kind = format_of(path, format)
    if path == STANDARD_OUTPUT:
        lines = JsonLines(sys.stdout.buffer, with_input=with_input)
        items = _write_all(lines, produced, count)
        sys.stdout.buffer.flush()
        return ExportSummary(items, sum(1 for _ in errors), path, None, None)
    check_place(path)
    ids_path = beside(path, "ids") if kind is ExportFormat.NPY else None
    errors_path = beside(path, "errors")
    try:
        with AtomicFiles() as files:
            first, produced = _peeked(produced)
            found = dimensions
            if found is None and first is not None and first.vector is not None:
                found = first.vector.size
            if keep_old and first is None and (_holds(path) or _is_shapeless(kind, found)):
                _check_count(0, count)
                failed = _write_errors(files, errors_path, errors, keep_old=True)
                return ExportSummary(
                    0, failed, path, None, errors_path if failed else None, is_written=False
                )
            shape = Shape(with_input, first is not None and first.answer is not None, found)
            writer = _writer(files, path, ids_path, kind, shape, guard_formulas=guard_formulas)
            items = _write_all(writer, produced, count)
            failed = _write_errors(files, errors_path, errors)
    except (OSError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or "pyarrow refused it"
        raise ExportFailed(f"{path} can't be written: {why}.", detail=str(error)) from error
    return ExportSummary(items, failed, path, ids_path, errors_path if failed else None)


def _write_all(writer: Writer, produced: Iterable[Produced], count: int | None) -> int:
    items = 0
    try:
        for items, item in enumerate(produced, 1):  # noqa: B007  # the last one is the number
            writer.write(item)
        _check_count(items, count)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return items


def _check_count(items: int, expected: int | None) -> None:
    if expected not in {None, items}:
        raise ExportFailed(
            f"{expected:,} results were to be exported, and {items:,} came; export again."
        )


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _is_shapeless(kind: ExportFormat, dimensions: int | None) -> bool:
    return kind is ExportFormat.NPY and dimensions is None


def _write_errors(
    files: AtomicFiles, path: Path, errors: Iterable[FailedItem], *, keep_old: bool = False
) -> int:
    first, errors = _peeked(errors)
    if first is None:
        if not keep_old:
            files.remove(path)
        return 0
    writer = ErrorLines(files.create(path))
    failed = 0
    for item in errors:
        writer.write(item)
        failed += 1
    return failed


def _writer(
    files: AtomicFiles,
    path: Path,
    ids_path: Path | None,
    kind: ExportFormat,
    shape: Shape,
    *,
    guard_formulas: bool,
) -> Writer:
    match kind:
        case ExportFormat.JSONL:
            return JsonLines(files.create(path), with_input=shape.with_input)
        case ExportFormat.CSV:
            return Csv(files.create(path), shape, guard_formulas=guard_formulas)
        case ExportFormat.PARQUET:
            return Parquet(files.create(path), shape)
        case ExportFormat.NPY:
            if shape.dimensions is None:
                raise ExportFailed("There are no vectors to write; choose another format.")
            ids = files.create(ids_path or beside(path, "ids"))
            return Npy(files.create(path), ids, shape.dimensions, with_input=shape.with_input)


def _peeked(items: Iterable[T]) -> tuple[T | None, Iterator[T]]:
    """Return the first item, if there is one, and all of them."""
    rest = iter(items)
    first = next(rest, None)
    return first, rest if first is None else chain([first], rest)
