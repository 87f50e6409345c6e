"""Progress bars over jobs until they end."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar
from uuid import UUID

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

from promptstack.api.cli.terminal import err, printable, until
from promptstack.repositories.models import JobState
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.views import JobView
from promptstack.tasks.composition import PromptStack

Item = TypeVar("Item")

POLL_SECONDS = 0.1
LOOK_JOBS = 400
NO_WORKER_SECONDS = 3.0


class _RateColumn(TextColumn):
    """Items a second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> "str":  # type: ignore[override]
        return f"{task.speed:,.0f}/s" if task.speed else ""


def follow(stack: PromptStack, job_ids: Sequence[UUID]) -> Iterator[dict[UUID, Progress]]:
    """Yield the progress of all jobs, again and again, until all have ended."""
    known: dict[UUID, Progress] = {}
    still_open = list(job_ids)
    started = time.monotonic()
    warned = False
    while True:
        # Some jobs at a time, in turns: of thousands, few change at once.
        looked_at = still_open[:LOOK_JOBS]
        known |= stack.progress.read(looked_at)
        still_open = still_open[LOOK_JOBS:] + [id_ for id_ in looked_at if not _ended(known, id_)]
        yield known
        if not still_open:
            return
        waits = time.monotonic() - started > NO_WORKER_SECONDS
        if waits and not warned and not any(p.state is JobState.RUNNING for p in known.values()):
            warned = True
            why = waits_for(stack.jobs.get(still_open[0]))
            if why:
                err.print(f"The jobs wait: {printable(why)}", style="yellow", markup=False)
        time.sleep(POLL_SECONDS)


def waits_for(job: JobView) -> str:
    """Why a queued job waits; empty for any other."""
    if job.waits is None:
        return ""
    then = f", until in {until(job.waits.until)}" if job.waits.until else ""
    return f"{job.waits.reason}{then}: {job.waits.detail}"


def _ended(known: Mapping[UUID, Progress], job_id: UUID) -> bool:
    return job_id in known and known[job_id].state.is_final


def show_until_done(
    stack: PromptStack,
    expected: Mapping[UUID, int],
    *,
    label: str,
    unit: str,
    quiet: bool = False,
) -> dict[UUID, Progress]:
    """Show one bar over all jobs until they have ended, and return their progress.

    `expected` is a guess at the items of each job, used until a worker has counted them.
    """
    latest: dict[UUID, Progress] = {}
    with _bar(quiet=quiet) as bar:
        row = bar.add_task(label, total=sum(expected.values()) or None, unit=unit, note="")
        for latest in follow(stack, list(expected)):
            total = sum(_total(latest.get(job_id), guess) for job_id, guess in expected.items())
            done = sum(progress.current for progress in latest.values())
            bar.update(row, total=total, completed=done, note=_note(latest))
    return latest


def shown(
    batches: Iterable[Sequence[Item]], total: int, *, label: str, unit: str, quiet: bool = False
) -> Iterator[Sequence[Item]]:
    """Yield batches, and show a bar over the items of those that are done.

    The bar appears after the first batch, so that an error in it is one line.
    """
    done = 0
    with ExitStack() as opened:
        bar = None
        for batch in batches:
            yield batch
            done += len(batch)
            if bar is None and done < total:
                bar = opened.enter_context(_bar(quiet=quiet))
                row = bar.add_task(label, total=total, unit=unit, note="")
            if bar is not None:
                bar.update(row, completed=done)


def _total(progress: Progress | None, guess: int) -> int:
    if progress is None or (progress.state is JobState.QUEUED and progress.total == 1):
        return guess
    return progress.total


def _note(latest: Mapping[UUID, Progress]) -> str:
    waiting = [p for p in latest.values() if p.state is JobState.QUEUED and p.error]
    if not waiting:
        return ""
    first = min(waiting, key=lambda progress: progress.retry_at)
    seconds = max(0.0, first.retry_at - time.time())
    return f"attempt {first.failures} failed, retry in {seconds:.1f} s: {printable(first.error)}"


@contextmanager
def _bar(*, quiet: bool) -> Iterator[Bar]:
    with Bar(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="yellow", markup=False),
        console=err,
        disable=quiet,
    ) as bar:
        yield bar
