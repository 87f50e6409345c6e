"""`promptstack runs ...`: batches of embeddings and generations."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.markup import escape
from rich.table import Table

from api.cli import run_start
from api.cli.connection import connected
from api.cli.run_end import finish
from api.cli.run_output import Target, write_output
from api.cli.run_start import dollars_of
from api.cli.terminal import UUID_CHARACTERS, JsonFlag, dollars, out, plural, print_json, printable
from services.export.items import ExportFormat

app = typer.Typer(help="Batches of embeddings and generations.", no_args_is_help=True)
app.command()(run_start.embed)
app.command()(run_start.generate)

RunId = Annotated[UUID, typer.Argument(help="Id of the run.")]


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List runs, newest first."""
    with connected(start_servers=True) as stack:
        runs = stack.runs.get_many(limit=limit)
    if as_json:
        print_json([vars(run) for run in runs])
        return
    table = Table(box=None)
    table.add_column("run", no_wrap=True, min_width=UUID_CHARACTERS)
    for name in ("name", "kind", "model", "state", "done", "failed", "reused", "cost", "age"):
        table.add_column(name)
    for run in runs:
        age = datetime.now(UTC) - run.created_at
        table.add_row(
            str(run.id),
            escape(printable(run.name)),
            run.kind,
            escape(f"{run.provider}/{run.model}"),
            run.state,
            f"{run.succeeded:,}/{run.total:,}",
            f"{run.failed:,}",
            f"{run.reused:,}",
            f"${dollars(run.cost_usd)}",
            str(age).split(".", maxsplit=1)[0],
        )
    out.print(table)


@app.command()
def show(run_id: RunId, as_json: JsonFlag = False) -> None:
    """Show a run."""
    with connected(start_servers=True) as stack:
        run = stack.runs.get(run_id)
    if as_json:
        print_json(vars(run))
        return
    for name, value in vars(run).items():
        out.print(f"{name:>14}  {printable(str(value))}", markup=False)


@app.command()
def watch(
    run_id: RunId,
    output: run_start.Output = None,
    overwrite: run_start.Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Show a run live until it has ended."""
    with connected() as stack:
        target = Target(output, overwrite=overwrite)
        target.check(stack.runs.get(run_id).kind)
        finish(stack, run_id, target, as_json=as_json)


@app.command()
def cancel(run_id: RunId, as_json: JsonFlag = False) -> None:
    """Stop a run: no call begins any more; what is produced and under way is kept."""
    with connected() as stack:
        run = stack.runs.cancel(run_id)
    if as_json:
        print_json(vars(run))
    else:
        done = f"{run.succeeded:,} of {run.total:,} are done and kept"
        out.print(f"Cancelled; {done}, as is what calls under way still bring.")


@app.command()
def retry(
    run_id: RunId,
    max_cost: Annotated[str | None, typer.Option(help="A new limit, in dollars.")] = None,
    detach: run_start.Detach = False,
    output: run_start.Output = None,
    overwrite: run_start.Overwrite = False,
    as_json: JsonFlag = False,
) -> None:
    """Try again what failed or was never tried; what succeeded isn't paid for again."""
    with connected() as stack:
        target = Target(output, overwrite=overwrite)
        target.check(stack.runs.get(run_id).kind, detach=detach, run=run_id)
        run = stack.runs.retry(run_id, max_cost_usd=dollars_of(max_cost))
        if not detach:
            finish(stack, run_id, target, as_json=as_json)
        elif as_json:
            print_json(vars(run))
        else:
            left = run.total - run.succeeded - run.failed
            out.print(f"{plural(left, 'item')} {'is' if left == 1 else 'are'} tried again.")


@app.command()
def export(
    run_id: RunId,
    path: Annotated[Path, typer.Argument(help="The file to write, or - for standard output.")],
    format_: Annotated[
        ExportFormat | None, typer.Option("--format", help="Where the suffix doesn't tell.")
    ] = None,
    with_input: Annotated[
        bool, typer.Option("--with-input", help="Also write what was asked.")
    ] = False,
    overwrite: run_start.Overwrite = False,
) -> None:
    """Write what a run has produced, in order, and its failures beside it."""
    with connected(start_servers=True) as stack:
        target = Target(path, format_, overwrite=overwrite)
        target.check(stack.runs.get(run_id).kind)
        write_output(stack, run_id, target, with_input=with_input)
