"""Watches a run to its end, writes its output and prints its summary."""

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import typer

from promptstack.api.cli.runs.output import Target, write_output
from promptstack.api.cli.runs.watch import watch_run
from promptstack.api.cli.terminal import (
    INTERRUPTED,
    JOB_FAILED,
    cost,
    err,
    out,
    plural,
    print_json,
    stop,
)
from promptstack.config.errors import PromptStackError
from promptstack.repositories.run_models import RunState
from promptstack.services.runs.views import RunView
from promptstack.tasks.composition import PromptStack


def finish(stack: PromptStack, run_id: UUID, target: Target, *, as_json: bool) -> None:
    """Watch a run to its end, write its output, and exit as it ended."""
    to = "" if target.path is None else shlex.quote(str(target.path))
    to += " --overwrite" if to and target.overwrite else ""
    written = f" -o {to}" if to else ""
    with _left(
        f"Run {run_id} goes on: promptstack runs watch {run_id}{written}, "
        f"promptstack runs cancel {run_id}"
    ):
        err.print(f"Run {run_id}", markup=False)
        watch_run(stack, run_id, quiet=as_json)
    run = stack.runs.get(run_id)
    export = f"promptstack runs export {run_id} -o {to}"
    unwritten = False
    try:
        with _left(f"Run {run_id} has ended, and its results are kept: {export}"):
            summary = write_output(stack, run_id, target)
            unwritten = summary is not None and summary.unwritten > 0
    except PromptStackError as error:
        unwritten = True
        err.print(f"promptstack: {error}", style="red", markup=False)
        err.print(f"The results of run {run_id} are kept: {export}", markup=False)
    # A program that reads results from standard output would take the summary for one.
    print_run(run, as_json=as_json, to_err=target.is_standard_output)
    if run.state is RunState.CANCELLED:
        stop("the run was cancelled.", JOB_FAILED)
    if run.state is not RunState.COMPLETED:
        stop(f"the run {run.state}: {run.error or 'no reason given'}", JOB_FAILED)
    if run.failed or unwritten:
        raise typer.Exit(JOB_FAILED)


def print_run(run: RunView, *, as_json: bool, to_err: bool = False) -> None:
    """Print the state and the sums of a run."""
    if as_json:
        print_json(vars(run), to_err=to_err)
        return
    paid = "nothing was paid" if run.calls == 0 else cost(run.cost_usd, run.unknown_cost)
    paid = "its cost is not known" if paid == "?" else paid
    (err if to_err else out).print(
        f"Run {run.id} is {run.state}: {run.succeeded:,} of {plural(run.total, 'item')} done, "
        f"{run.failed:,} failed, {run.reused:,} reused; {plural(run.calls, 'call')}, {paid}."
    )
    if run.state is RunState.COMPLETED and run.error:
        err.print(run.error, style="yellow", markup=False)


@contextmanager
def _left(message: str) -> Iterator[None]:
    """Print how to come back to a run, where Ctrl-C ends the command."""
    try:
        yield
    except KeyboardInterrupt:
        err.print(f"\n{message}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
