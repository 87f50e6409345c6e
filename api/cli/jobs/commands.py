"""`promptstack jobs ...`: list, show, watch, cancel and retry jobs."""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.watch import show_until_done, waits_for
from promptstack.api.cli.options.values import point_in_time, seconds_of
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    ID_HELP,
    JOB_FAILED,
    TIMED_OUT,
    JsonFlag,
    age,
    err,
    out,
    plural,
    print_fields,
    print_items,
    print_json,
    printable,
    stop,
)
from promptstack.config.errors import PromptStackError
from promptstack.repositories.models import JobKind, JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.jobs.views import JobView, asked
from promptstack.tasks.composition import PromptStack

Id = Annotated[str, typer.Argument(metavar="ID", help=f"Id of the job; {ID_HELP}.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help=f"Ids of jobs; of each, {ID_HELP}.")]
Kind = Annotated[
    JobKind | None,
    typer.Option(metavar="KIND", help=f"Only jobs of this kind: {', '.join(JobKind)}."),
]
COLUMNS = (
    Column("job"),
    Column("kind", rank=4),
    Column("model", rank=6),
    Column("state"),
    Column("done", rank=1),
    Column("tries", rank=5, right=True),
    Column("age", rank=2, right=True),
    Column("why", rank=3, elastic=True),
)
COUNTED = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"))
MANY = 100_000


def list_(
    state: Annotated[
        JobState | None,
        typer.Option(metavar="STATE", help=f"Only jobs in this state: {', '.join(JobState)}."),
    ] = None,
    kind: Kind = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    with connected(start_servers=True) as stack:
        jobs = stack.jobs.get_many(state=state, kind=kind, limit=limit)
    if as_json:
        print_items(job.model_dump(mode="json", exclude={"result"}) for job in jobs)
    elif jobs:
        print_table(COLUMNS, list(map(_row, jobs)))
    else:
        out.print("No jobs.")


def _row(job: JobView) -> list[str]:
    return [
        str(job.id),
        job.kind,
        asked(job.provider, job.model),
        job.state,
        f"{job.current}/{job.total}",
        str(job.attempt),
        age(job.created_at),
        waits_for(job) or job.error or "",
    ]


def show(job_id: Id, as_json: JsonFlag = False) -> None:
    """Show one job with its attempts and its result."""
    with connected(start_servers=True) as stack:
        job = stack.jobs.get(stack.jobs.find(job_id))
        attempts = stack.jobs.get_attempts(job.id)
    if as_json:
        attempt_rows = [attempt.model_dump(mode="json") for attempt in attempts]
        print_json({**job.model_dump(mode="json"), "attempts": attempt_rows})
        return
    print_fields(job.model_dump(exclude={"result", "waits"}))
    if job.waits is not None:
        print_fields({"waits": waits_for(job)})
    for attempt in attempts:
        tokens = f"{_known(attempt.input_tokens)}+{_known(attempt.output_tokens)} tokens"
        tokens += "" if attempt.cost_usd is None else f", ${attempt.cost_usd:.6f}"
        if attempt.limiter_wait_seconds:
            tokens += f", waited {attempt.limiter_wait_seconds:.1f} s for the rate limit"
        out.print(
            f"{'attempt':>11}  {attempt.number}.{attempt.call} {attempt.provider}/"
            f"{printable(attempt.model)} {attempt.state}: "
            f"{printable(attempt.error or tokens)}",
            markup=False,
        )
        if attempt.detail:
            out.print(f"{'':>11}  the provider said: {printable(attempt.detail)}", markup=False)
        if attempt.note:
            out.print(f"{'':>11}  odd in the answer: {printable(attempt.note)}", markup=False)
    print_fields(job.result or {})


def _known(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)


def watch(
    job_ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Default: all open jobs.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Follow jobs until they have ended."""
    with connected() as stack:
        chosen = [stack.jobs.get(job_id) for job_id in map(stack.jobs.find, job_ids or [])]
        if not job_ids:
            for state in (JobState.QUEUED, JobState.RUNNING):
                chosen += stack.jobs.get_many(state=state, limit=MANY)
        if not chosen and not as_json:
            out.print("No open jobs.")
            return
        expected = {job.id: job.total for job in chosen}
        label = plural(len(expected), "job")
        show_until_done(stack, expected, label=label, unit="items", quiet=as_json)
        _tell_ends(stack.jobs.get_all(list(expected)), as_json=as_json)


def wait(
    job_ids: Ids,
    timeout: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help=f"Give up after 30 (seconds), 10m or 2h, with exit code {TIMED_OUT}.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Wait quietly until jobs have ended; for scripts."""
    seconds = seconds_of(timeout)
    with connected() as stack:
        ids = list(dict.fromkeys(map(stack.jobs.find, job_ids)))
        try:
            ended = stack.jobs.wait(ids, math.inf if seconds is None else seconds)
        except TimeoutError as error:
            stop(str(error), TIMED_OUT)
        _tell_ends(ended, as_json=as_json)


def _tell_ends(jobs: list[JobView], *, as_json: bool) -> None:
    """Print how jobs ended, and exit with a failure where one did not succeed."""
    failed = [job for job in jobs if job.state is not JobState.SUCCEEDED]
    if as_json:
        print_items(job.model_dump(mode="json") for job in jobs)
    else:
        out.print(f"{len(jobs) - len(failed)} succeeded, {len(failed)} did not.")
    for job in failed:
        err.print(f"{job.id} {job.state}: {printable(job.error or '')}", markup=False)
    if failed:
        raise typer.Exit(JOB_FAILED)


def cancel(job_ids: Ids, as_json: JsonFlag = False) -> None:
    """Cancel queued or running jobs; what they produced stays."""
    with connected(start_servers=True) as stack:
        cancel_one = partial(stack.jobs.cancel, actor=Actor.command_line())
        _change_each(stack, job_ids, cancel_one, "cancelled", as_json=as_json)


def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of jobs.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All failed jobs; or those below.")] = False,
    state: Annotated[
        JobState | None,
        typer.Option(metavar="STATE", help="All in this state: failed, cancelled or expired."),
    ] = None,
    kind: Kind = None,
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
    """Queue jobs again that failed: those named, or all that match."""
    matches = (state, kind, provider, model, error, since)
    wants_many = all_ or any(given is not None for given in matches)
    if bool(job_ids) == wants_many:
        stop("Name jobs by their ids, or choose them by --all, --state, --error and the like.")
    with connected(start_servers=True) as stack:
        if job_ids:
            retry_one = partial(stack.jobs.retry, actor=Actor.command_line())
            _change_each(stack, job_ids, retry_one, "queued again", as_json=as_json)
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
                actor=Actor.command_line(),
                on_progress=lambda some: bar.advance(task, some),
            )
    if as_json:
        print_json({"retried": retried})
    else:
        out.print(f"Queued again: {plural(retried, 'job')}." if retried else "No job matches.")


def _change_each(
    stack: PromptStack,
    job_ids: list[str],
    change: Callable[[UUID], JobView],
    word: str,
    *,
    as_json: bool,
) -> None:
    changed, problems = [], []
    for job_id in job_ids:
        try:
            changed.append(change(stack.jobs.find(job_id)))
        except PromptStackError as error:
            problems.append(str(error))
    if as_json:
        print_items(job.model_dump(mode="json", exclude={"result"}) for job in changed)
    else:
        for job in changed:
            answered = job.state is JobState.SUCCEEDED
            said = "has an answer that came when it had ended" if answered else f"is {word}"
            out.print(f"Job {job.id} {said}.")
    if problems:
        stop(" ".join(problems))
