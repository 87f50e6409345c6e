"""Serve the HTTP API: `python -m api.http`, or `promptstack api`."""

import argparse
import json
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType
from typing import NoReturn

import uvicorn

from api.http.app import create_app
from config.errors import ConfigurationError, PromptStackError
from config.logging import configure_logging
from config.parent import die_with_parent
from config.settings import Settings, load_settings
from tasks.composition import PromptStack


class Server(uvicorn.Server):
    """Says on standard output where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print one line of JSON."""
        await super().startup(sockets=sockets)
        for listener in sockets or []:
            sys.stdout.write(json.dumps({"url": _url(listener)}) + "\n")
            sys.stdout.flush()


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
            _server(stack).run(sockets=[listener])
    except PromptStackError as error:
        sys.stderr.write(f"promptstack api: {error}\n")
        return 2
    except KeyboardInterrupt:
        pass  # uvicorn has ended in order, and hands on the signal that told it to
    return 0


def _server(stack: PromptStack) -> Server:
    grace = math.ceil(stack.settings.shutdown_grace_seconds)
    return Server(
        uvicorn.Config(
            create_app(stack),
            log_config=None,
            # Addresses may hold what callers search for.
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=grace,
        )
    )


def _listen(settings: Settings) -> socket.socket:
    host, port = settings.api_host, settings.api_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror
        raise ConfigurationError(f"Cannot listen on {host}, port {port}: {reason}.") from error


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    # A server on all addresses is reached on this machine by its own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # Not sys.exit: a thread that waits for a server that hangs would hold up the end.
    os._exit(code)
