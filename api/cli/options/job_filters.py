"""Options that choose jobs: the fields of a filter."""

from typing import Annotated

import typer

from promptstack.api.cli.options.values import point_in_time
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobKind, JobState

State = Annotated[
    JobState | None,
    typer.Option(metavar="STATE", help=f"Only jobs in this state: {', '.join(JobState)}."),
]
Kind = Annotated[
    JobKind | None,
    typer.Option(metavar="KIND", help=f"Only jobs of this kind: {', '.join(JobKind)}."),
]
Provider = Annotated[str | None, typer.Option(help="Only this provider's.")]
Model = Annotated[str | None, typer.Option(help="Only this model's.")]
Error = Annotated[
    str | None, typer.Option(help="Only with this error code, as `jobs show` tells it.")
]
OfTag = Annotated[str | None, typer.Option("--tag", help="Only with this tag.")]
Since = Annotated[
    str | None, typer.Option(help="Only what was accepted since: a date, 2h, 7d, 4w.")
]
Until = Annotated[str | None, typer.Option(help="Only what was accepted before: alike.")]


def job_filter(
    state: JobState | None,
    kind: JobKind | None,
    provider: str | None,
    model: str | None,
    error: str | None,
    tag: str | None,
    since: str | None,
    until: str | None,
) -> JobFilter:
    """The filter that these options say."""
    return JobFilter(
        state,
        kind,
        provider,
        model,
        error,
        tag,
        since=point_in_time(since) if since else None,
        until=point_in_time(until) if until else None,
    )
