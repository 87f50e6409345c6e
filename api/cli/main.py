"""The command `promptstack`."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from promptstack.api.cli import doctor, keys, search, usage
from promptstack.api.cli.jobs import attempts
from promptstack.api.cli.jobs.commands import app as jobs_app
from promptstack.api.cli.jobs.embed import embed
from promptstack.api.cli.jobs.generate import generate
from promptstack.api.cli.options.jobs import with_groups
from promptstack.api.cli.runs.commands import app as runs_app
from promptstack.api.cli.serve import chaos, demo
from promptstack.api.cli.serve import commands as serve
from promptstack.api.cli.terminal import plain_errors

NO_HELP = {**serve.PASS_THROUGH, "help_option_names": []}
HELP_WIDTH = 100


class Commands(TyperGroup):
    """The commands. None ends with a traceback for one of our own errors."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        with plain_errors():
            return super().invoke(ctx)


def build() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        cls=Commands,
        help="Durable generation and embedding jobs on Celery, Redis and PostgreSQL.",
        no_args_is_help=True,
        epilog="Begin with `promptstack up`. `promptstack COMMAND --help` names its options.",
        rich_markup_mode=None,  # its boxes leave little room for words, and name flags <bool>
        pretty_exceptions_enable=False,  # its tracebacks show local variables: prompts
        context_settings={"max_content_width": HELP_WIDTH},
    )
    app.callback()(_options)
    app.command()(serve.up)
    for become in (serve.worker, serve.api, serve.flower, serve.simulator):
        app.command(context_settings=NO_HELP)(become)
    app.command()(serve.migrate)
    app.command()(demo.demo)
    app.command()(with_groups(generate))
    app.command()(with_groups(embed))
    app.command()(search.search)
    app.command()(usage.usage)
    app.command()(attempts.attempts)
    app.command()(doctor.doctor)
    app.command()(chaos.chaos)
    app.add_typer(jobs_app, name="jobs")
    app.add_typer(runs_app, name="runs")
    app.add_typer(keys.app, name="keys")
    return app


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"promptstack {version('prompt-stack')}")
        raise typer.Exit


def _options(
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Durable generation and embedding jobs on Celery, Redis and PostgreSQL."""
