"""Writes results and errors to files. Memory does not grow with them."""

import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.services.export.array_writers import Npy, Parquet
from promptstack.services.export.atomic import AtomicFiles
from promptstack.services.export.columns import Shape
from promptstack.services.export.items import ExportFailed, ExportFormat, ExportSummary, NotWritable
from promptstack.services.export.line_writers import Csv, ErrorLines, JsonLines, Writer
from promptstack.services.export.paths import STANDARD_OUTPUT, beside, check_place, format_of

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

    All files appear together and whole, or the old ones stay as they are. A result that the format
    can't hold stands among the errors, and `unwritten` counts it.
    """
    kind = format_of(path, format)
    if path == STANDARD_OUTPUT:
        lines = JsonLines(sys.stdout.buffer, with_input=with_input)
        unwritten: list[FailedItem] = []
        items = _write_all(lines, produced, count, unwritten.append)
        sys.stdout.buffer.flush()
        failed = sum(1 for _ in errors) + len(unwritten)
        return ExportSummary(items, failed, path, None, None, unwritten=len(unwritten))
    check_place(path)
    ids_path = beside(path, "ids") if kind is ExportFormat.NPY else None
    errors_path = beside(path, "errors")
    try:
        with AtomicFiles() as files:
            ill = _ErrorFile(files, errors_path)
            first, produced = _peeked(produced)
            found = dimensions
            if found is None and first is not None and first.vector is not None:
                found = first.vector.size
            if keep_old and first is None and (_holds(path) or _is_shapeless(kind, found)):
                _check_count(0, count)
                ill.write_all(errors)
                return ExportSummary(0, ill.count, path, None, ill.path, is_written=False)
            shape = Shape(with_input, first is not None and first.answer is not None, found)
            writer = _writer(files, path, ids_path, kind, shape, guard_formulas=guard_formulas)
            items = _write_all(writer, produced, count, ill.write)
            unwritten_items = ill.count
            ill.write_all(errors)
            if ill.path is None:
                files.remove(errors_path)
    except (OSError, pa.ArrowException) as error:
        why = getattr(error, "strerror", None) or "pyarrow refused it"
        raise ExportFailed(f"{path} can't be written: {why}.", detail=str(error)) from error
    return ExportSummary(items, ill.count, path, ids_path, ill.path, unwritten=unwritten_items)


class _ErrorFile:
    """The file of failed items, made when the first one comes."""

    def __init__(self, files: AtomicFiles, path: Path) -> None:
        self._files = files
        self._path = path
        self._lines: ErrorLines | None = None
        self.count = 0

    @property
    def path(self) -> Path | None:
        """The path of the file; None if nothing failed."""
        return None if self._lines is None else self._path

    def write(self, item: FailedItem) -> None:
        if self._lines is None:
            self._lines = ErrorLines(self._files.create(self._path))
        self._lines.write(item)
        self.count += 1

    def write_all(self, items: Iterable[FailedItem]) -> None:
        for item in items:
            self.write(item)


def _write_all(
    writer: Writer[Produced],
    produced: Iterable[Produced],
    count: int | None,
    tell: Callable[[FailedItem], None],
) -> int:
    """Write the results that fit the format, report the others; return the number written."""
    came = written = 0
    try:
        for came, item in enumerate(produced, 1):  # noqa: B007  # the last one is the number
            try:
                writer.write(item)
                written += 1
            except NotWritable as error:
                tell(
                    FailedItem(
                        item.position,
                        item.custom_id,
                        error.code,
                        str(error),
                        error.detail,
                        item.metadata,
                    )
                )
        _check_count(came, count)
        writer.finish()
    except BaseException:
        writer.abandon()
        raise
    return written


def _check_count(items: int, expected: int | None) -> None:
    if expected not in {None, items}:
        raise ExportFailed(
            f"{expected:,} results were to be exported, and {items:,} came; export again."
        )


def _holds(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _is_shapeless(kind: ExportFormat, dimensions: int | None) -> bool:
    return kind is ExportFormat.NPY and dimensions is None


def _writer(
    files: AtomicFiles,
    path: Path,
    ids_path: Path | None,
    kind: ExportFormat,
    shape: Shape,
    *,
    guard_formulas: bool,
) -> Writer[Produced]:
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
    """Return the first item, if any, and an iterator over all items."""
    rest = iter(items)
    first = next(rest, None)
    return first, rest if first is None else chain([first], rest)
