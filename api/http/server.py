"""The HTTP server."""

import json
import math
import socket
import sys

import uvicorn

from promptstack.api.http.app import create_app
from promptstack.api.http.protocol import BoundedProtocol
from promptstack.services.events.hub import EventHub
from promptstack.tasks.composition import PromptStack


class Server(uvicorn.Server):
    """Prints its URL once it listens, and ends what would go on for ever when it stops."""

    def __init__(self, config: uvicorn.Config, events: EventHub) -> None:
        super().__init__(config)
        self._events = events

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop: clients that watch come again later, others get their answers."""
        self._events.close()
        await super().shutdown(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then print one line of JSON."""
        for listener in sockets or []:
            # Connections inherit it. Else the body of each answer, which is sent after its head,
            # waits up to 40 ms for the client to acknowledge the head.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await super().startup(sockets=sockets)
        for listener in sockets or []:
            sys.stdout.write(json.dumps({"url": _url(listener)}) + "\n")
            sys.stdout.flush()


def make_server(stack: PromptStack) -> Server:
    """Make a server over `stack`, with bounds on what one client can hold up."""
    settings = stack.settings
    return Server(
        uvicorn.Config(
            create_app(stack),
            http=BoundedProtocol.bounded_by(
                read_seconds=settings.request_read_seconds,
                max_connections=settings.max_connections,
            ),
            ws="none",
            log_config=None,
            # Addresses may hold what a caller searches for.
            access_log=False,
            server_header=False,
            # Who may speak for others is said by TRUSTED_PROXIES; see `peers`.
            proxy_headers=False,
            timeout_graceful_shutdown=math.ceil(settings.shutdown_grace_seconds),
        ),
        stack.events,
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    # On this machine, a server on all addresses is reached by the local one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
