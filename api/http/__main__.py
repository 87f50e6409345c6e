"""Serve the HTTP API: `python -m promptstack.api.http`, or `promptstack api`."""

import argparse
import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

from promptstack.api.http.first_admin import create_first_admin
from promptstack.api.http.server import make_server
from promptstack.config.errors import ConfigurationError, PromptStackError
from promptstack.config.logging import configure_logging
from promptstack.config.parent import die_with_parent
from promptstack.config.settings import Settings, load_settings
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.settings_seen import record_settings


def main() -> int:
    """Serve until SIGTERM or Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(prog="promptstack api")
    left_out = argparse.SUPPRESS
    parser.add_argument("--host", dest="api_host", default=left_out, help="API_HOST")
    parser.add_argument("--port", dest="api_port", type=int, default=left_out, help="API_PORT")
    parser.add_argument("--with-parent", action="store_true", help="end when the starter ends")
    given = vars(parser.parse_args())
    with_parent = given.pop("with_parent")
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if with_parent:
            die_with_parent()
        settings = load_settings(**given)
        configure_logging(settings)
        with PromptStack.open(settings) as stack, _listen(settings) as listener:
            stack.check_connections()
            record_settings(stack, "api")
            create_first_admin(stack)
            make_server(stack).run(sockets=[listener])
    except PromptStackError as error:
        sys.stderr.write(f"promptstack api: {error}\n")
        return 2
    except KeyboardInterrupt:
        pass  # uvicorn has ended in order, and raises the signal that ended it again
    return 0


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.api_host, settings.api_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise ConfigurationError(f"Cannot listen on {host}, port {port}: {reason}.") from error


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def run() -> NoReturn:
    """Serve, and end the process."""
    code = main()
    logging.shutdown()
    # Not sys.exit: it would wait for a thread that waits for a server that hangs.
    os._exit(code)


if __name__ == "__main__":
    run()
