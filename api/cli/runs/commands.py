"""`promptstack runs ...`: batches of embeddings and generations."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected
from promptstack.api.cli.options.values import dollars_of
from promptstack.api.cli.runs.end import finish
from promptstack.api.cli.runs.output import Detach, Output, Overwrite, Target, write_output
from promptstack.api.cli.table import Column, print_table
from promptstack.api.cli.terminal import (
    ID_HELP,
    JOB_FAILED,
    JsonFlag,
    age,
    cost,
    describe,
    out,
    plural,
    print_fields,
    print_items,
    print_json,
    stop,
)
from promptstack.repositories.pages import PageQuery
from promptstack.repositories.run_models import RunKind, RunState
from promptstack.services.audit.actor import Actor
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs.views import RunView
from promptstack.tasks.composition import PromptStack

RunId = Annotated[str, typer.Argument(metavar="ID", help=f"Id of the run; {ID_HELP}.")]
COLUMNS = (
    Column("run"),
    Column("name", rank=3, elastic=True),
    Column("kind", rank=6),
    Column("model", rank=8),
    Column("state"),
    Column("done", rank=1, right=True),
    Column("failed", rank=4, right=True),
    Column("reused", rank=7, right=True),
    Column("cost", rank=2, right=True),
    Column("age", rank=5, right=True),
)


def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 20,
    state: Annotated[RunState | None, typer.Option(help="Only runs in this state.")] = None,
    kind: Annotated[RunKind | None, typer.Option(help="Only runs of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only runs with this tag.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List runs, newest first."""
    with connected(start_servers=True) as stack:
        runs = stack.runs.get_page(PageQuery(limit), state=state, kind=kind, tag=tag).rows
    if as_json:
        print_items(map(vars, runs))
    elif runs:
        print_table(COLUMNS, list(map(_row, runs)))
    else:
        out.print("No runs.")


def _row(run: RunView) -> list[str]:
    return [
        str(run.id),
        run.name,
        run.kind,
        f"{run.provider}/{run.model}",
        run.state,
        f"{run.succeeded:,}/{run.total:,}",
        f"{run.failed:,}",
        f"{run.reused:,}",
        cost(run.cost_usd, run.unknown_cost),
        age(run.created_at),
    ]


def show(run_id: RunId, as_json: JsonFlag = False) -> None:
    """Show a run."""
    with connected(start_servers=True) as stack:
        run = stack.runs.get(stack.runs.find(run_id))
        waits = stack.rate_limited_jobs.who(run.id)
    if as_json:
        print_json({**vars(run), "waits": [one._asdict() for one in waits]})
        return
    known = cost(run.cost_usd, run.unknown_cost)
    print_fields({**vars(run), "cost_usd": "unknown" if known == "?" else known})
    for one in waits:
        print_fields({"waiting": describe(one)})


def watch(
    run_id: RunId,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a run live until it has ended."""
    with connected() as stack:
        target = Target(output, overwrite=overwrite)
        run = stack.runs.get(stack.runs.find(run_id))
        target.check(run.kind)
        finish(stack, run.id, target, as_json=as_json)


def cancel(run_id: RunId, as_json: JsonFlag = False) -> None:
    """Stop a run; what is produced and under way is kept."""
    with connected() as stack:
        run = stack.runs.cancel(stack.runs.find(run_id), actor=Actor.command_line())
    if as_json:
        print_json(vars(run))
    else:
        done = f"{run.succeeded:,} of {run.total:,} are done and kept"
        out.print(f"Cancelled; {done}, as is what calls under way still bring.")


def retry(
    run_id: RunId,
    max_cost: Annotated[str | None, typer.Option(help="A new limit, in dollars.")] = None,
    detach: Detach = False,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Try again what failed or was never tried.

    What succeeded isn't paid for again.
    """
    with connected() as stack:
        again = partial(stack.runs.retry, max_cost_usd=dollars_of(max_cost))
        _start_again(stack, run_id, again, Target(output, overwrite=overwrite), detach, as_json)


def _start_again(
    stack: PromptStack,
    run_id: str,
    again: Callable[..., RunView],
    target: Target,
    detach: bool,
    as_json: bool,
) -> None:
    """Start a run again, watch it to its end and write its output."""
    found = stack.runs.find(run_id)
    target.check(stack.runs.get(found).kind, detach=detach, run=found)
    run = again(found, actor=Actor.command_line())
    if not detach:
        finish(stack, found, target, as_json=as_json)
    elif as_json:
        print_json(vars(run))
    else:
        left = run.total - run.succeeded - run.failed
        out.print(f"{plural(left, 'item')} {'is' if left == 1 else 'are'} tried again.")


def resume(
    run_id: RunId,
    max_cost: Annotated[str | None, typer.Option(help="A new limit, in dollars.")] = None,
    detach: Detach = False,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Go on with a run that ended before all its items were tried.

    What failed stays failed; `runs retry` tries that too.
    """
    with connected() as stack:
        again = partial(stack.runs.resume, max_cost_usd=dollars_of(max_cost))
        _start_again(stack, run_id, again, Target(output, overwrite=overwrite), detach, as_json)


def delete(run_id: RunId, as_json: JsonFlag = False) -> None:
    """Delete a run that has ended, and vectors that nobody else uses."""
    with connected() as stack:
        found = stack.runs.find(run_id)
        stack.runs.delete(found, actor=Actor.command_line())
    if as_json:
        print_json({"id": found, "deleted": True})
    else:
        out.print(f"Deleted run {found}.")


def export(
    run_id: RunId,
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="The same as --output.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Write to .jsonl, .parquet, .npy or .csv, or - for stdout.",
        ),
    ] = None,
    format_: Annotated[
        ExportFormat | None, typer.Option("--format", help="Where the suffix doesn't tell.")
    ] = None,
    with_input: Annotated[
        bool, typer.Option("--with-input", help="Also write what was asked.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Write what a run has produced, and its failures beside it."""
    if (path is None) == (output is None):
        stop("Name one file to write: -o answers.jsonl, or -o - for standard output.")
    with connected(start_servers=True) as stack:
        target = Target(path or output, format_, overwrite=overwrite)
        run = stack.runs.get(stack.runs.find(run_id))
        target.check(run.kind)
        summary = write_output(stack, run.id, target, with_input=with_input, quiet=as_json)
    if as_json and summary is not None:
        # A program reads results from standard output, and would take the summary for one.
        print_json(asdict(summary), to_err=target.is_standard_output)
    if summary is not None and summary.unwritten:
        raise typer.Exit(JOB_FAILED)
