"""`promptstack jobs ...`: list, show, watch and wait for jobs."""

import math
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.watch import show_until_done, waits_for
from promptstack.api.cli.options.job_filters import (
    Error,
    Kind,
    Model,
    OfTag,
    Provider,
    Since,
    State,
    Until,
    job_filter,
)
from promptstack.api.cli.options.values import seconds_of
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
from promptstack.repositories.models import JobState
from promptstack.repositories.pages import PageQuery
from promptstack.services.jobs.views import JobView, asked

Id = Annotated[str, typer.Argument(metavar="ID", help=f"Id of the job; {ID_HELP}.")]
Ids = Annotated[list[str], typer.Argument(metavar="ID", help=f"Ids of jobs; of each, {ID_HELP}.")]
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
MANY = 100_000


def list_(
    state: State = None,
    kind: Kind = None,
    provider: Provider = None,
    model: Model = None,
    error: Error = None,
    tag: OfTag = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List jobs, newest first."""
    wanted = job_filter(state, kind, provider, model, error, tag, since, until)
    with connected(start_servers=True) as stack:
        jobs = stack.jobs.get_page(wanted, PageQuery(limit)).rows
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
