"""Checks before any handler, and problems for errors that no handler sees."""

from anyio import CancelScope
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptstack.api.http.errors import unexpected
from promptstack.api.http.problems import DETAILS, respond


class ProblemMiddleware:
    """Answers unexpected exceptions, and rewrites the plain-text errors of other middleware.

    Exceptions end here. The server would log their messages, which may quote a prompt.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        plain: Message | None = None
        text = b""

        async def send_problems(message: Message) -> None:
            nonlocal started, plain, text
            if message["type"] == "http.response.start":
                started = True
                if _is_plain_error(message):
                    plain = message
                    return
            elif plain is not None:
                text += message.get("body", b"")
                if not message.get("more_body", False):
                    status = plain["status"]
                    detail = None if status in DETAILS else text.decode(errors="replace")
                    await respond(status, detail)(scope, receive, send)
                return
            await send(message)

        try:
            await self._app(scope, receive, send_problems)
        except Exception as error:  # noqa: BLE001 - the last place that sees it
            response = unexpected(error)
            if started:
                # Too late for a status. Break off: half an answer must not be taken for all of it.
                raise RuntimeError("the response broke off") from None
            await response(scope, receive, send)


class HeadMiddleware:
    """Answers HEAD as GET, without the body (RFC 9110, 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        with CancelScope() as rest:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    # The body may be a long file, or events without an end.
                    rest.cancel()

            await self._app({**scope, "method": "GET"}, receive, send_head)


class FramingMiddleware:
    """Refuses a request with two headers that say where it ends (RFC 9112, 6.1).

    A proxy before this server may read the other header, and take a part of the body for the next
    request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        names = {name for name, _ in scope.get("headers", ())}
        if names >= {b"content-length", b"transfer-encoding"}:
            detail = "A request has Content-Length or Transfer-Encoding, and not both."
            await respond(400, detail, headers={"Connection": "close"})(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_plain_error(start: Message) -> bool:
    media_type = Headers(raw=start["headers"]).get("content-type", "")
    return start["status"] >= 400 and media_type.startswith("text/plain")
