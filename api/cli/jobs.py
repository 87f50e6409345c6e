"""`promptstack jobs ...`: look at jobs, follow, cancel and retry them."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.table import Table

from api.cli.connection import connected
from api.cli.terminal import (
    JOB_FAILED,
    UUID_CHARACTERS,
    JsonFlag,
    err,
    out,
    plural,
    point_in_time,
    print_json,
    printable,
    stop,
)
from api.cli.watching import show_until_done
from config.errors import PromptStackError
from repositories.models import JobKind, JobState
from services.views import JobView

app = typer.Typer(help="Look at jobs, follow, cancel and retry them.", no_args_is_help=True)

Ids = Annotated[list[UUID], typer.Argument(help="Ids of jobs.")]
SHORT_ERROR = 60
COUNTED = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"))
MANY = 100_000


@app.command("list")
def list_(
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connected(start_servers=True) as stack:
        jobs = stack.jobs.get_many(state=state, kind=kind, limit=limit)
    if as_json:
        print_json([job.model_dump(mode="json", exclude={"result"}) for job in jobs])
        return
    table = Table(box=None)
    # An id that is cut can't be copied.
    table.add_column("job", no_wrap=True, min_width=UUID_CHARACTERS)
    for name in ("kind", "model", "state", "done", "tries", "age", "error"):
        table.add_column(name)
    for job in jobs:
        age = datetime.now(UTC) - job.created_at
        table.add_row(
            str(job.id),
            job.kind,
            escape(printable(f"{job.provider}/{job.model}")),
            job.state,
            f"{job.current}/{job.total}",
            str(job.attempt),
            f"{age.total_seconds():,.0f} s",
            escape(printable(job.error or "")[:SHORT_ERROR]),
        )
    out.print(table if jobs else "No jobs.")


@app.command()
def show(job_id: UUID, as_json: JsonFlag = False) -> None:
    """Show one job with its attempts and its result."""
    with connected(start_servers=True) as stack:
        job = stack.jobs.get(job_id)
        attempts = stack.jobs.get_attempts(job_id)
    if as_json:
        attempt_rows = [attempt.model_dump(mode="json") for attempt in attempts]
        print_json({**job.model_dump(mode="json"), "attempts": attempt_rows})
        return
    for name, value in job.model_dump(exclude={"result"}).items():
        if value is not None:
            out.print(f"{name:>12}  {printable(str(value))}", markup=False)
    for attempt in attempts:
        tokens = f"{attempt.input_tokens or 0}+{attempt.output_tokens or 0} tokens"
        tokens += "" if attempt.cost_usd is None else f", ${attempt.cost_usd:.6f}"
        if attempt.limiter_wait_seconds:
            tokens += f", waited {attempt.limiter_wait_seconds:.1f} s for the rate limit"
        out.print(
            f"{'attempt':>12}  {attempt.number}.{attempt.call} {attempt.provider}/"
            f"{printable(attempt.model)} {attempt.state}: "
            f"{printable(attempt.error or tokens)}",
            markup=False,
        )
        if attempt.detail:
            out.print(f"{'':>12}  the provider said: {printable(attempt.detail)}", markup=False)
    for name, value in (job.result or {}).items():
        out.print(f"{name:>12}  {printable(str(value))}", markup=False)


@app.command()
def watch(
    job_ids: Annotated[list[UUID] | None, typer.Argument(help="Default: all open jobs.")] = None,
) -> None:
    """Follow jobs until they have ended."""
    with connected() as stack:
        chosen = [stack.jobs.get(job_id) for job_id in job_ids or []]
        if not job_ids:
            for state in (JobState.QUEUED, JobState.RUNNING):
                chosen += stack.jobs.get_many(state=state, limit=MANY)
        if not chosen:
            out.print("No open jobs.")
            return
        expected = {job.id: job.total for job in chosen}
        ended = show_until_done(stack, expected, label=f"{len(chosen)} jobs", unit="items")
        failed = [job for job in ended.values() if job.state is not JobState.SUCCEEDED]
        out.print(f"{len(ended) - len(failed)} succeeded, {len(failed)} did not.")
        for progress in failed:
            err.print(
                f"{progress.job_id} {progress.state}: {printable(progress.error)}", markup=False
            )
        if failed:
            raise typer.Exit(JOB_FAILED)


@app.command()
def cancel(job_ids: Ids, as_json: JsonFlag = False) -> None:
    """Cancel queued or running jobs; what they produced stays."""
    with connected(start_servers=True) as stack:
        _change_each(job_ids, stack.jobs.cancel, "cancelled", as_json=as_json)


@app.command()
def retry(
    job_ids: Annotated[list[UUID] | None, typer.Argument(help="Ids of jobs.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All failed jobs; or those below.")] = False,
    state: Annotated[
        JobState | None, typer.Option(help="All in this state: failed, cancelled or expired.")
    ] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only jobs of this kind.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only this provider's.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model's.")] = None,
    error: Annotated[
        str | None, typer.Option(help="Only with this error code, as `jobs show` tells it.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what ended since: a date, 2h, 7d, 4w.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Queue failed, cancelled or expired jobs again: those named, or all that match."""
    matches = (state, kind, provider, model, error, since)
    wants_many = all_ or any(given is not None for given in matches)
    if bool(job_ids) == wants_many:
        stop("Name jobs by their ids, or choose them by --all, --state, --error and the like.")
    with connected(start_servers=True) as stack:
        if job_ids:
            _change_each(job_ids, stack.jobs.retry, "queued again", as_json=as_json)
            return
        with Progress(*COUNTED, console=err, disable=as_json) as bar:
            task = bar.add_task("queued again", total=None)
            retried = stack.jobs.retry_many(
                state=state or JobState.FAILED,
                kind=kind,
                provider=provider,
                model=model,
                error_code=error,
                since=point_in_time(since) if since else None,
                told=lambda some: bar.advance(task, some),
            )
    if as_json:
        print_json({"retried": retried})
    else:
        out.print(f"Queued again: {plural(retried, 'job')}." if retried else "No job matches.")


def _change_each(
    job_ids: list[UUID], change: Callable[[UUID], JobView], word: str, *, as_json: bool
) -> None:
    changed, problems = [], []
    for job_id in job_ids:
        try:
            changed.append(change(job_id))
        except PromptStackError as error:
            problems.append(str(error))
    if as_json:
        print_json([job.model_dump(mode="json", exclude={"result"}) for job in changed])
    else:
        for job in changed:
            answered = job.state is JobState.SUCCEEDED
            said = "has an answer that came when it had ended" if answered else f"is {word}"
            out.print(f"Job {job.id} {said}.")
    if problems:
        stop(" ".join(problems))
