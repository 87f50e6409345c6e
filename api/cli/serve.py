"""`promptstack up`, and the commands that become one of its processes."""

import os
import sys
from typing import Annotated, NoReturn

import typer

from api.cli.connection import connected, embedded, needs_embedded
from api.cli.processes import Children, interrupt_on_signals
from api.cli.terminal import err, out, plain_errors
from config.logging import configure_logging
from config.settings import get_settings
from repositories.migrations import upgrade
from tasks.composition import PromptStack

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
) -> None:
    """Start everything on this machine: servers, migrations, workers and the HTTP API."""
    interrupt_on_signals()
    with plain_errors():
        settings = get_settings()
        configure_logging(settings, quiet=True)
        stack = PromptStack.open(settings) if not needs_embedded(settings) else None
        with stack or embedded(settings) as opened:
            opened.ledger.ping()
            upgrade(opened.ledger.engine)
            children = Children(opened)
            try:
                for number in range(1, workers + 1):
                    children.start(f"worker {number}", "worker")
                url = children.start_api(settings.api_port if port is None else port)
                out.print(f"Prompt Stack is up. API: {url}{settings.api_v1_prefix}")
                out.print("Make a key with `promptstack keys create`. Ctrl-C stops everything.")
                children.watch()
            except KeyboardInterrupt:
                err.print("Stopping.")
            finally:
                children.stop()


def migrate() -> None:
    """Bring the database's schema to this version."""
    with connected(start_servers=True) as stack:
        stack.ledger.ping()  # says plainly when it is away
        before, after = upgrade(stack.ledger.engine)
    out.print(f"The schema is at {after}." if before == after else f"Migrated {before} to {after}.")


def worker(context: typer.Context) -> None:
    """Start a worker process (--concurrency N)."""
    _become("worker", context.args)


def api(context: typer.Context) -> None:
    """Start the HTTP API (--host, --port)."""
    _become("api.http", context.args)


def flower(context: typer.Context) -> None:
    """Start the Flower dashboard (--host, --port)."""
    _become("api.flower", context.args)


def simulator(context: typer.Context) -> None:
    """Start a stand-in for OpenAI, Anthropic and Gemini, for tests (--port, --rpm, --latency)."""
    _become("simulator", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    """Put the module's process in the place of this one, so that signals reach it directly."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606
