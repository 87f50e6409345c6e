"""The command `promptstack`."""

import typer

from api.cli import attempts, chaos, demo, doctor, enqueue, jobs, keys, runs, search, serve, usage
from api.cli.terminal import print_what_can_be

NO_HELP = {**serve.PASS_THROUGH, "help_option_names": []}


def build() -> typer.Typer:
    """Put the commands together."""
    app = typer.Typer(
        help="Durable generation and embedding jobs on Celery, Redis and PostgreSQL.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,  # its tracebacks show local variables: prompts
    )
    app.command()(serve.up)
    for become in (serve.worker, serve.api, serve.flower, serve.simulator):
        app.command(context_settings=NO_HELP)(become)
    app.command()(serve.migrate)
    app.command()(demo.demo)
    app.command()(enqueue.generate)
    app.command()(enqueue.embed)
    app.command()(search.search)
    app.command()(usage.usage)
    app.command()(attempts.attempts)
    app.command()(doctor.doctor)
    app.command()(chaos.chaos)
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(runs.app, name="runs")
    app.add_typer(keys.app, name="keys")
    return app


def run() -> None:
    """Run the command line."""
    print_what_can_be()
    build()()
