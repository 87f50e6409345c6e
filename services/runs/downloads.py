"""Downloads of what a run has produced: written as they are read, and never whole anywhere.

Of a run that has ended the same bytes come each time, so a part of them can be asked for. Where
parts begin is remembered in the cache.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from uuid import UUID

import pyarrow as pa

from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.repositories.session import Ledger
from promptstack.services.cache.cache import Cache
from promptstack.services.errors import InvalidInput, NotFound, WrongState
from promptstack.services.export.array_writers import npy_header
from promptstack.services.export.columns import Shape
from promptstack.services.export.items import ExportFormat
from promptstack.services.export.streams import SEEKABLE, failures_as, results_as
from promptstack.services.runs.results import RunResults, Span

MARK_BYTES = 8_000_000
"""Between two places from which a download can go on."""
KEPT_SECONDS = 86_400.0
WRITTEN_AS = 1
"""Raise it when the bytes of a format change: what was downloaded before can't be continued."""
VALUE_BYTES = 4
"""Of one number of a vector in a NumPy array."""

Reader = Callable[[int, bool], Iterator[tuple[int, bytes]]]
"""Yields bytes from behind a position on, each with the last position in them. It takes whether
others came before."""


@dataclass(frozen=True)
class Wanted:
    """What somebody wants of a run's output, and in which form."""

    format: ExportFormat
    failures: bool = False
    """The items that have failed, not the results."""
    after: int = 0
    settled: bool = False
    """Only up to the first item that is still open."""
    with_input: bool = False
    with_vector: bool = True


@dataclass
class Marks:
    """Places of a download from which it can be continued."""

    places: list[list[int]]
    """Of each the bytes before it, and the last position in them."""
    length: int | None = None
    """Of all of it; None until somebody has read it to the end."""

    def before(self, start: int) -> tuple[int, int]:
        """Return the last place before some byte."""
        offset, position = next(place for place in reversed(self.places) if place[0] <= start)
        return offset, position


class Download:
    """What a run has produced, as bytes."""

    def __init__(
        self,
        read: Reader,
        wanted: Wanted,
        *,
        name: str,
        next_after: int | None = None,
        tag: str | None = None,
        length: int | None = None,
        cache: Cache | None = None,
    ) -> None:
        """Take the `tag`, which names these bytes for ever; None while the run goes on."""
        self.name = name
        self.next_after = next_after
        self.tag = tag
        self._read = read
        self._is_seekable = wanted.format in SEEKABLE
        self._cache = cache
        self._key = f"output:{tag}"
        found = cache.get(self._key) if cache is not None and tag is not None else None
        self._marks = Marks(*found) if found else Marks([[0, wanted.after]], length)

    @property
    def length(self) -> int | None:
        """How many bytes it has, if that is known."""
        return self._marks.length

    def measuring(self) -> Iterator[bytes]:
        """Make all blocks that nobody has made yet, to learn the length; each is thrown away."""
        if self._marks.length is None:
            yield from self.blocks(self._marks.places[-1][0], skip_all=True)

    def blocks(
        self, start: int = 0, stop: int | None = None, *, skip_all: bool = False
    ) -> Iterator[bytes]:
        """Yield the bytes from `start` to before `stop`, block by block.

        With `skip_all`, an empty block stands for each. Raises `WrongState` if the run was changed
        meanwhile, and `NotFound` if it was deleted.
        """
        at, after = self._marks.before(start)
        try:
            for position, data in self._read(after, at > 0):
                begin, at = at, at + len(data)
                self._note(at, position)
                if skip_all:
                    yield b""
                elif at > start:
                    yield data[max(0, start - begin) : None if stop is None else stop - begin]
                if stop is not None and at >= stop:
                    return
            self._marks.length = at
        finally:
            self._remember()

    def _note(self, at: int, position: int) -> None:
        if self._is_seekable and position and at >= self._marks.places[-1][0] + MARK_BYTES:
            self._marks.places.append([at, position])

    def _remember(self) -> None:
        if self._cache is None or self.tag is None:
            return
        known = self._cache.get(self._key)
        if known is None or len(known[0]) < len(self._marks.places) or known[1] is None:
            self._cache.set(self._key, [self._marks.places, self._marks.length], KEPT_SECONDS)


class RunDownloads:
    """Opens downloads."""

    def __init__(
        self, ledger: Ledger, results: RunResults, cache: Cache, *, guard_formulas: bool
    ) -> None:
        self._ledger = ledger
        self._results = results
        self._cache = cache
        self._guard_formulas = guard_formulas

    def open(self, run_id: UUID, owner: UUID | None, wanted: Wanted) -> Download:
        """Open what a run has produced so far. Raises `NotFound`, `InvalidInput`, `WrongState`."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        if run is None or (owner is not None and run.user_id != owner):
            raise NotFound(f"There is no run {run_id}.")
        _check(RunKind(run.kind), wanted)
        what = "failures" if wanted.failures else "results"
        name = f"{run_id}.{what}.{wanted.format}"
        span = Span(wanted.after, with_input=wanted.with_input, with_vector=wanted.with_vector)
        if RunState(run.state).is_final:
            span = replace(span, version=run.version)
            read, length = self._reader(run, wanted, span)
            tag = self._tag(run, wanted)
            return Download(read, wanted, name=name, tag=tag, length=length, cache=self._cache)
        # Asked before anything is read: what ends meanwhile comes twice rather than never.
        settled = self._results.settled_until(run_id, wanted.after)
        if wanted.settled or wanted.format is ExportFormat.NPY:
            # The header of an array says how many rows come, so no other may come in between.
            span = replace(span, until=settled)
        read, length = self._reader(run, wanted, span)
        return Download(read, wanted, name=name, next_after=settled, length=length)

    def _reader(self, run: Run, wanted: Wanted, span: Span) -> tuple[Reader, int | None]:
        """Return what reads it, and how many bytes that gives where this is known before."""
        guard = self._guard_formulas
        if wanted.failures:
            failures = failures_as(wanted.format, guard_formulas=guard)
            return (
                lambda after, is_continued: failures.encode(
                    self._results.failed_blocks(run.id, replace(span, after=after)),
                    is_continued=is_continued,
                ),
                None,
            )
        sizes = self._sizes(run, wanted)
        shape = Shape(wanted.with_input, run.kind == RunKind.GENERATION, sizes)
        count = length = None
        if wanted.format is ExportFormat.NPY and sizes is not None:
            count = self._results.count_vectors(run.id, span)
            length = len(npy_header(count, sizes)) + count * sizes * VALUE_BYTES
        results = results_as(wanted.format, shape, count=count, guard_formulas=guard)
        return (
            lambda after, is_continued: results.encode(
                self._results.produced_blocks(run.id, replace(span, after=after)),
                is_continued=is_continued,
            ),
            length,
        )

    def _sizes(self, run: Run, wanted: Wanted) -> int | None:
        """Return how many numbers a vector has. None where there are no vectors."""
        if run.kind != RunKind.EMBEDDING or not wanted.with_vector:
            return None
        sizes = self._results.sizes(run.id)
        if len(sizes) > 1 and wanted.format is not ExportFormat.JSONL:
            raise WrongState(
                f"The run's vectors have {' and '.join(map(str, sorted(sizes)))} numbers; a table "
                "or an array can't hold both. Take them as JSON Lines."
            )
        if not sizes and wanted.format is ExportFormat.NPY:
            raise WrongState("The run has no vectors yet, so nobody knows how long its rows are.")
        return sizes[0] if sizes else None

    def _tag(self, run: Run, wanted: Wanted) -> str:
        """Name the bytes of a download: the same name means the same bytes."""
        made_by = pa.__version__ if wanted.format is ExportFormat.PARQUET else ""
        parts = (run.id, run.version, wanted, self._guard_formulas, made_by, WRITTEN_AS)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _check(kind: RunKind, wanted: Wanted) -> None:
    """Raise `InvalidInput` for a form in which the output can't be written."""
    if wanted.format is not ExportFormat.NPY:
        return
    if wanted.failures:
        raise InvalidInput("Failures are no vectors; take them as jsonl, csv or parquet.")
    if kind is not RunKind.EMBEDDING or not wanted.with_vector or wanted.with_input:
        raise InvalidInput(
            "A NumPy array holds vectors and nothing else; take jsonl, csv or parquet."
        )
