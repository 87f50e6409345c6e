"""Writes results and failures as a stream of bytes, block by block, in any format."""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, Generic

from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.services.export.array_writers import Parquet, npy_header
from promptstack.services.export.columns import Columns, FailureColumns, Row, Shape, checked_vector
from promptstack.services.export.items import ExportFormat
from promptstack.services.export.line_writers import Csv, ErrorLines, JsonLines, Writer

SEEKABLE = frozenset({ExportFormat.JSONL, ExportFormat.CSV, ExportFormat.NPY})
"""Formats of which a part can be written without what comes before it. The end of a Parquet file
says where each of its groups of rows begins."""


class Encoding(Generic[Row]):
    """A format with all that it must know before the first row."""

    def __init__(self, kind: ExportFormat, start: Callable[[BinaryIO, bool], Writer[Row]]) -> None:
        """Take `start`, which makes a writer; also one that goes on behind other rows."""
        self.kind = kind
        self._start = start

    def encode(
        self, blocks: Iterable[Sequence[Row]], *, is_continued: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """Yield the bytes of each block with its last position, and those of the end with 0.

        `is_continued`: other rows came before, so there is no header. Raises `NotWritable`.
        """
        taken = Taken()
        writer = self._start(taken, is_continued)
        try:
            for rows in blocks:
                for row in rows:
                    writer.write(row)
                yield rows[-1].position, taken.take()
            writer.finish()
        except BaseException:
            writer.abandon()
            raise
        yield 0, taken.take()


def results_as(
    kind: ExportFormat, shape: Shape, *, count: int | None, guard_formulas: bool
) -> Encoding[Produced]:
    """Return how results are written. `count` is how many there are, for NumPy's header."""

    def start(file: BinaryIO, is_continued: bool) -> Writer[Produced]:
        match kind:
            case ExportFormat.JSONL:
                return JsonLines(file, with_input=shape.with_input)
            case ExportFormat.NPY:
                if not is_continued:
                    file.write(npy_header(count or 0, shape.dimensions or 0))
                return _Vectors(file, shape.dimensions or 0)
            case _:
                return _table(kind, file, shape, is_continued, guard_formulas)

    return Encoding(kind, start)


def failures_as(kind: ExportFormat, *, guard_formulas: bool) -> Encoding[FailedItem]:
    """Return how failed items are written."""

    def start(file: BinaryIO, is_continued: bool) -> Writer[FailedItem]:
        if kind is ExportFormat.JSONL:
            return ErrorLines(file)
        return _table(kind, file, FailureColumns(), is_continued, guard_formulas)

    return Encoding(kind, start)


class Taken(io.BytesIO):
    """A file of which somebody takes what was written, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self._taken = 0

    def tell(self) -> int:
        """Return how much was ever written."""
        return self._taken + super().tell()

    def take(self) -> bytes:
        """Return what was written since it was called last."""
        piece = self.getvalue()
        self._taken += len(piece)
        self.seek(0)
        self.truncate(0)
        return piece


class _Vectors:
    """The rows of a NumPy array; whoever reads them knows whose they are."""

    def __init__(self, file: BinaryIO, dimensions: int) -> None:
        self._file = file
        self._dimensions = dimensions

    def write(self, item: Produced) -> None:
        self._file.write(checked_vector(item, self._dimensions).data)

    def finish(self) -> None:
        pass

    def abandon(self) -> None:
        pass


def _table(
    kind: ExportFormat,
    file: BinaryIO,
    columns: Columns[Row],
    is_continued: bool,
    guard_formulas: bool,
) -> Writer[Row]:
    if kind is ExportFormat.PARQUET:
        return Parquet(file, columns)
    return Csv(file, columns, guard_formulas=guard_formulas, with_header=not is_continued)
