"""`promptstack jobs cancel` and `retry`: named jobs, or all that match, by an operation."""

import time
from collections.abc import Callable
from functools import partial
from typing import Annotated
from uuid import UUID

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn

from promptstack.api.cli.connection import connected
from promptstack.api.cli.jobs.watch import NO_WORKER_SECONDS, waits_for
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
from promptstack.api.cli.terminal import (
    JOB_FAILED,
    JsonFlag,
    err,
    out,
    plural,
    print_items,
    print_json,
    printable,
    stop,
)
from promptstack.config.errors import PromptStackError
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobState
from promptstack.repositories.operation_models import OperationAction
from promptstack.services.audit.actor import Actor
from promptstack.services.jobs.views import JobView
from promptstack.services.operations.views import OperationView
from promptstack.tasks.composition import PromptStack

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all of it is done.")]
CHANGED = {OperationAction.RETRY: "queued again", OperationAction.CANCEL: "cancelled"}
COUNTED = (SpinnerColumn(), TextColumn("{task.completed:,.0f} {task.description}"))


def cancel(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of jobs.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All open jobs; or those below.")] = False,
    state: State = None,
    kind: Kind = None,
    provider: Provider = None,
    model: Model = None,
    error: Error = None,
    tag: OfTag = None,
    since: Since = None,
    until: Until = None,
    wait: Wait = True,
    as_json: JsonFlag = False,
) -> None:
    """Cancel queued or running jobs; what they produced stays."""
    wanted = job_filter(state, kind, provider, model, error, tag, since, until)
    _change(OperationAction.CANCEL, job_ids, wanted, all_=all_, wait=wait, as_json=as_json)


def retry(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of jobs.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="All failed jobs; or those below.")] = False,
    state: State = None,
    kind: Kind = None,
    provider: Provider = None,
    model: Model = None,
    error: Error = None,
    tag: OfTag = None,
    since: Since = None,
    until: Until = None,
    wait: Wait = True,
    as_json: JsonFlag = False,
) -> None:
    """Queue jobs again that failed: those named, or all that match."""
    wanted = job_filter(state, kind, provider, model, error, tag, since, until)
    _change(OperationAction.RETRY, job_ids, wanted, all_=all_, wait=wait, as_json=as_json)


def _change(
    action: OperationAction,
    job_ids: list[str] | None,
    wanted: JobFilter,
    *,
    all_: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Change the named jobs here, or start an operation on all that match."""
    if bool(job_ids) == (all_ or wanted != JobFilter()):
        stop("Name jobs by their ids, or choose them by --all, --state, --error and the like.")
    with connected(start_servers=True) as stack:
        actor = Actor.command_line()
        if job_ids:
            ways = {
                OperationAction.RETRY: stack.jobs.retry,
                OperationAction.CANCEL: stack.jobs.cancel,
            }
            change_one = partial(ways[action], actor=actor)
            _change_each(stack, job_ids, change_one, CHANGED[action], as_json=as_json)
            return
        operation = stack.operations.start(action, wanted, actor=actor)
        if wait:
            operation = _follow(stack, operation, CHANGED[action], quiet=as_json)
    if as_json:
        print_json(operation.model_dump(mode="json"))
        return
    if not operation.state.is_final:
        out.print(f"Operation {operation.id} is {operation.state}; a worker does it.")
        return
    out.print(f"{CHANGED[action].capitalize()}: {plural(operation.done, 'job')}.")
    for failure in operation.failures:
        err.print(f"{failure.job_id}: {printable(failure.error)}", markup=False)
    if operation.skipped:
        err.print(f"{plural(operation.skipped, 'job')} had changed meanwhile.")
    if operation.state is not JobState.SUCCEEDED:
        stop(f"The operation is {operation.state}: {printable(operation.error or '')}", JOB_FAILED)


def _follow(
    stack: PromptStack, operation: OperationView, word: str, *, quiet: bool
) -> OperationView:
    """Show how far an operation has come, until it has ended."""
    began = time.monotonic()
    is_warned = False
    with Progress(*COUNTED, console=err, disable=quiet) as bar:
        task = bar.add_task(word, total=None)
        for now in stack.operations.follow(operation.id):
            operation = now
            bar.update(task, completed=now.done)
            waits = now.started_at is None and not now.state.is_final
            if waits and not is_warned and time.monotonic() - began > NO_WORKER_SECONDS:
                is_warned = True
                why = waits_for(stack.jobs.get(now.id))
                err.print(f"The operation waits: {printable(why)}", style="yellow", markup=False)
    return operation


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
