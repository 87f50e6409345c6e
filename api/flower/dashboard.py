"""Flower's web application, set up for this project."""

import ipaddress
import os
from ast import literal_eval
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from celery import states
from flower.app import Flower
from flower.options import default_options
from flower.urls import settings as flower_settings
from pydantic import SecretStr
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import ErrorHandler, OutputTransform

from promptstack.config.errors import ConfigurationError
from promptstack.tasks.composition import PromptStack

MAX_TASKS = 10_000
"""Jobs that Flower keeps in memory, about 2 kB each; the ledger has them all."""

FORGET_WORKERS_SECONDS = 600
"""Each start of a worker has its own name, and old ones would fill the page."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_BODY_BYTES = 100_000
"""More than any of its pages sends."""

COLUMNS = "name,uuid,state,args,received,result"


@dataclass(frozen=True)
class Listen:
    """Where Flower listens, and whom it lets in."""

    host: str
    port: int
    basic_auth: SecretStr | None
    """user:password"""
    read_seconds: float = 60.0
    """A request must arrive within this time."""
    allowed_hosts: Sequence[str] = ()
    """Names of it beside those of this machine. * is any name, where it asks for a password."""

    def check(self) -> None:
        """Raise `ConfigurationError` for what would be unsafe."""
        if self.basic_auth is None and not self.is_loopback:
            raise ConfigurationError(
                f"Flower would let everyone in on {self.host}: set FLOWER_BASIC_AUTH to "
                "user:password, or FLOWER_HOST to 127.0.0.1."
            )
        if self.basic_auth is not None:
            user, colon, password = self.basic_auth.get_secret_value().partition(":")
            if not (user and colon and password):
                raise ConfigurationError("FLOWER_BASIC_AUTH must read user:password.")
            if not (user + password).isascii():
                raise ConfigurationError(
                    "FLOWER_BASIC_AUTH must be of ASCII characters: Flower can compare no others."
                )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def is_ours(self, host: str) -> bool:
        """Whether a request for this host, given without its port, is meant for Flower.

        A web page can point a name of its own at this machine, and could then read all that answers
        to that name (DNS rebinding).
        """
        names = {*LOOPBACK, self.host, f"[{self.host}]", *self.allowed_hosts}
        if "*" in names and self.basic_auth is not None:
            return True
        parent = "*." + host.partition(".")[2]
        return host in names - {"*"} or parent in names

    def url(self, port: int) -> str:
        """The address for a browser on this machine."""
        # On this machine, a server on all addresses is reached by the local one.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def create_dashboard(stack: PromptStack, listen: Listen) -> tuple[Any, int]:
    """Make Flower and let it listen: the application, and its port. Raises `ConfigurationError`."""
    listen.check()
    # Flower reads results through Celery's default app.
    stack.celery.set_default()
    options = default_options
    options.address = listen.host
    options.port = listen.port
    options.max_tasks = MAX_TASKS
    options.purge_offline_workers = FORGET_WORKERS_SECONDS
    options.tasks_columns = COLUMNS
    options.natural_time = True
    options.format_task = shorten
    # Jobs are cancelled and retried by the API and the command line, which change the ledger.
    options.read_only = True
    if listen.basic_auth is not None:
        options.basic_auth = [listen.basic_auth.get_secret_value()]
    else:
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
    dashboard = Dashboard(
        listen, options=options, capp=stack.celery, io_loop=IOLoop.current(), **flower_settings
    )
    dashboard.add_transform(OwnPagesOnly)
    try:
        return dashboard, dashboard.start_http_server()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"Cannot listen on {listen.host}, port {listen.port}: {reason}."
        ) from error


class Dashboard(Flower):  # type: ignore[misc]  # it has no types
    """Flower, which answers only requests that are meant for it."""

    def __init__(self, listen: Listen, **kwargs: Any) -> None:
        self._listen = listen
        super().__init__(**kwargs)

    def start_http_server(self) -> int:
        """Listen, and return the port. Flower's own server gives a request no deadline."""
        listen = self._listen
        sockets = bind_sockets(listen.port, address=listen.host)
        HTTPServer(
            self,
            idle_connection_timeout=listen.read_seconds,
            body_timeout=listen.read_seconds,
            max_body_size=MAX_BODY_BYTES,
        ).add_sockets(sockets)
        return int(sockets[0].getsockname()[1])

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return the handler of a request. A request for another host is refused."""
        if not self._listen.is_ours(request.host_name):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 400})
        if not _can_be_compared(request.headers.get("Authorization", "")):
            return self.get_handler_delegate(request, ErrorHandler, {"status_code": 401})
        return super().find_handler(request, **kwargs)


def _can_be_compared(authorization: str) -> bool:
    """Whether Flower can read these credentials. At others it breaks, and shows its traceback."""
    try:
        return b64decode(authorization.partition(" ")[2]).isascii()
    except ValueError:
        return True  # it refuses these by itself


def shorten(task: Any) -> Any:
    """Shorten what Flower's pages show of a job to the width of a column."""
    task.args = (task.args or "").removeprefix(f"job {task.uuid} with ")
    if task.state in {states.RETRY, states.FAILURE}:
        task.result = task.exception
    elif task.state == states.SUCCESS:
        with suppress(ValueError, SyntaxError, KeyError):  # other text stays as it is
            summary = literal_eval(task.result)
            task.result = "done {done}, calls {calls}, tokens {tokens}".format_map(summary)
    return task


class OwnPagesOnly(OutputTransform):
    """Keeps web pages that a user visits from reading an open Flower."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Remove the header by which Flower lets all origins read it."""
        if "Access-Control-Allow-Origin" in headers:
            del headers["Access-Control-Allow-Origin"]
        return status_code, headers, chunk
