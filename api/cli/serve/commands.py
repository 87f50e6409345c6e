"""`promptstack up`, and the commands that become one of its processes."""

import socket
from contextlib import suppress
from functools import partial
from typing import Annotated

import typer

from promptstack.api.cli.connection import connected, embedded, needs_embedded
from promptstack.api.cli.entry import become
from promptstack.api.cli.serve.processes import Children, interrupt_on_signals
from promptstack.api.cli.terminal import JsonFlag, err, out, plural, print_json
from promptstack.config.logging import configure_logging
from promptstack.config.settings import Settings, get_settings
from promptstack.embedded.servers import revive, running
from promptstack.repositories.migrations import upgrade
from promptstack.tasks.composition import PromptStack


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    port: Annotated[int | None, typer.Option(help="Port of the API; 0 takes a free one.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Start servers, migrations, workers and the HTTP API.

    A second one in the same folder joins the first: the same servers and jobs, with workers and
    an API of its own.
    """
    interrupt_on_signals()
    settings = get_settings()
    configure_logging(settings, quiet=True)
    joins = needs_embedded(settings) and running(settings.state_dir) is not None
    port = _port(settings, port, joins=joins)
    stack = PromptStack.open(settings) if not needs_embedded(settings) else None
    with stack or embedded(settings) as opened:
        opened.ledger.ping()
        opened.check_connections()
        upgrade(opened.ledger.engine)
        if joins:
            err.print(
                "The servers of this folder run already, so this joins them: the same jobs, "
                f"{plural(workers, 'more worker')}, and an API of its own."
            )
        children = Children(opened)
        try:
            for number in range(1, workers + 1):
                children.start(f"worker {number}", "promptstack.worker")
            url = children.start_api(port) + settings.api_v1_prefix
            if as_json:
                print_json({"url": url, "workers": workers, "joined": joins})
            else:
                out.print(f"Prompt Stack is up. API: {url}")
                stops = "what it started; the first goes on" if joins else "everything"
                out.print(f"Make a key with `promptstack keys create`. Ctrl-C stops {stops}.")
            is_ours = needs_embedded(settings)
            children.watch(partial(revive, settings.state_dir) if is_ours else list)
        except KeyboardInterrupt:
            err.print("Stopping.")
        finally:
            children.stop()


def _port(settings: Settings, given: int | None, *, joins: bool) -> int:
    """Where the API listens: as told; but free, where the first `up` has the usual port."""
    if given is not None:
        return given
    if joins and _is_taken(settings.api_host, settings.api_port):
        return 0
    return settings.api_port


def _is_taken(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def migrate(as_json: JsonFlag = False) -> None:
    """Bring the database's schema to this version."""
    with connected(start_servers=True) as stack:
        stack.ledger.ping()  # says plainly when it is away
        before, after = upgrade(stack.ledger.engine)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        out.print(f"The schema is at {after}.")
    else:
        out.print(f"Migrated {before or 'an empty database'} to {after}.")


def worker(context: typer.Context) -> None:
    """Start a worker process."""
    become("worker", context.args)


def api(context: typer.Context) -> None:
    """Start the HTTP API."""
    become("api", context.args)


def flower(context: typer.Context) -> None:
    """Start the Flower dashboard."""
    become("flower", context.args)


def simulator(context: typer.Context) -> None:
    """Start a stand-in for OpenAI, Anthropic and Gemini."""
    become("simulator", context.args)
