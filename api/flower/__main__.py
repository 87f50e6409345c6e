"""Show Flower: `python -m promptstack.api.flower`, or `promptstack flower`."""

import argparse
import json
import logging
import os
import signal
import sys
from typing import NoReturn

from tornado.ioloop import IOLoop, PeriodicCallback

from promptstack.api.flower.dashboard import Listen, create_dashboard
from promptstack.api.flower.ledger_view import LedgerView
from promptstack.config.errors import PromptStackError
from promptstack.config.logging import configure_logging
from promptstack.config.parent import die_with_parent
from promptstack.config.settings import get_settings
from promptstack.tasks.composition import PromptStack

CATCH_UP_SECONDS = 2.0


def main() -> int:
    """Serve Flower until SIGTERM or Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(prog="promptstack flower")
    parser.add_argument("--host", help="address to listen on (FLOWER_HOST)")
    parser.add_argument("--port", type=int, help="port; 0 takes a free one (FLOWER_PORT)")
    parser.add_argument("--with-parent", action="store_true", help="end when the starter ends")
    arguments = parser.parse_args()
    if arguments.with_parent:
        die_with_parent()
    try:
        settings = get_settings()
        configure_logging(settings)
        # It logs the path of each request, which may hold what somebody searches for.
        logging.getLogger("tornado.access").setLevel(logging.ERROR)
        listen = Listen(
            arguments.host or settings.flower_host,
            settings.flower_port if arguments.port is None else arguments.port,
            settings.flower_basic_auth,
            settings.request_read_seconds,
            settings.allowed_hosts,
        )
        with PromptStack.open(settings) as stack:
            stack.check_connections()
            _serve(stack, listen)
    except PromptStackError as error:
        sys.stderr.write(f"promptstack flower: {error}\n")
        return 2
    return 0


def _serve(stack: PromptStack, listen: Listen) -> None:
    loop = IOLoop.current()
    dashboard, port = create_dashboard(stack, listen)
    view = LedgerView(stack.jobs, stack.progress, dashboard.events.state)
    catching_up = PeriodicCallback(view.catch_up, CATCH_UP_SECONDS * 1_000)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.add_callback_from_signal(dashboard.stop))
    catching_up.start()
    sys.stdout.write(json.dumps({"url": listen.url(port)}) + "\n")
    sys.stdout.flush()
    dashboard.start()
    catching_up.stop()


def run() -> NoReturn:
    """Serve, and end the process."""
    code = main()
    logging.shutdown()
    # Not sys.exit: it would wait for a thread that waits for a broker that is away.
    os._exit(code)


if __name__ == "__main__":
    run()
