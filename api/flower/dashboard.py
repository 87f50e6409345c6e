"""Flower's web application, set up for this project."""

import ipaddress
import os
from ast import literal_eval
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
"""Every start of a worker has its own name, so that old ones would fill the page."""

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
MAX_BODY_BYTES = 100_000
"""More than any of its pages sends."""

COLUMNS = "name,uuid,state,args,received,result"


@dataclass(frozen=True)
class Listen:
    """Where Flower listens, and what it asks for there."""

    host: str
    port: int
    basic_auth: SecretStr | None
    """user:password"""
    read_seconds: float = 60.0
    """In which a request must be here."""
    allowed_hosts: Sequence[str] = ()
    """Names that it has beside those of this machine; * is any, where it asks for a password."""

    def check(self) -> None:
        """Refuse what would be unsafe. Raises `ConfigurationError`."""
        if self.basic_auth is None and not self.is_loopback:
            raise ConfigurationError(
                f"Flower would let everyone in on {self.host}: set FLOWER_BASIC_AUTH to "
                "user:password, or FLOWER_HOST to 127.0.0.1."
            )
        if self.basic_auth is not None:
            user, colon, password = self.basic_auth.get_secret_value().partition(":")
            if not (user and colon and password):
                raise ConfigurationError("FLOWER_BASIC_AUTH must read user:password.")

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def is_ours(self, host: str) -> bool:
        """Whether a request for this host, without its port, is one for us.

        A web page can point a name of its own at this machine and then read as its own whatever
        answers to that name (DNS rebinding).
        """
        names = {*LOOPBACK, self.host, f"[{self.host}]", *self.allowed_hosts}
        if "*" in names and self.basic_auth is not None:
            return True
        parent = "*." + host.partition(".")[2]
        return host in names - {"*"} or parent in names

    def url(self, port: int) -> str:
        """The address for a browser on this machine."""
        # A server on all addresses is reached on this machine by its own.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def create_dashboard(stack: PromptStack, listen: Listen) -> tuple[Any, int]:
    """Make Flower and let it listen: the application, and its port. Raises `ConfigurationError`."""
    listen.check()
    # Flower asks for results through Celery's default app.
    stack.celery.set_default()
    options = default_options
    options.address = listen.host
    options.port = listen.port
    options.max_tasks = MAX_TASKS
    options.purge_offline_workers = FORGET_WORKERS_SECONDS
    options.tasks_columns = COLUMNS
    options.natural_time = True
    options.format_task = shorten
    # Jobs are cancelled and retried through the API and the command line, which tell the ledger.
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
    """Flower, for requests that mean it."""

    def __init__(self, listen: Listen, **kwargs: Any) -> None:
        self._listen = listen
        super().__init__(**kwargs)

    def start_http_server(self) -> int:
        """Listen; the port. Flower's own has no end to a request that comes only in part."""
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
        """Return what answers a request; one for another host is refused."""
        if self._listen.is_ours(request.host_name):
            return super().find_handler(request, **kwargs)
        return self.get_handler_delegate(request, ErrorHandler, {"status_code": 400})


def shorten(task: Any) -> Any:
    """Say on Flower's pages, in a column's width, with what a job runs and how it stands."""
    task.args = (task.args or "").removeprefix(f"job {task.uuid} with ")
    if task.state in {states.RETRY, states.FAILURE}:
        task.result = task.exception
    elif task.state == states.SUCCESS:
        with suppress(ValueError, SyntaxError, KeyError):  # other text stays as it is
            summary = literal_eval(task.result)
            task.result = "done {done}, calls {calls}, tokens {tokens}".format_map(summary)
    return task


class OwnPagesOnly(OutputTransform):
    """Keeps an open Flower from being read by every web page that its user visits."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Take back the permission that Flower gives to all origins."""
        if "Access-Control-Allow-Origin" in headers:
            del headers["Access-Control-Allow-Origin"]
        return status_code, headers, chunk
