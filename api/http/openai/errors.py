"""Problems as OpenAI's clients read errors: `error` with `message`, `type`, `param` and `code`.

It happens at the edge, so that what any part of the server refuses has the same form.
"""

import json
import re
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptstack.api.http.openai.routes import OPENAI_PREFIX
from promptstack.api.http.problems import MEDIA_TYPE
from promptstack.services.access.request_limits import RequestsLeft
from promptstack.services.openai.errors import SPENT, error_body

STATUSES: Mapping[int, int] = {402: 429, 415: 400, 422: 400}
"""Of problems that OpenAI answers by another status; its clients make one error class of each."""
STATUSES_OF_CODES: Mapping[str, int] = {"UNKNOWN_MODEL": 404}
"""Of problems whose status at OpenAI's depends on what is wrong."""
CODES_OF_STATUSES: Mapping[int, str] = {401: "invalid_api_key", SPENT: "insufficient_quota"}
"""OpenAI has one name for all that ours say of a key or a budget."""
CODES: Mapping[str, str] = {
    "UNKNOWN_MODEL": "model_not_found",
    "INPUT_TOO_LONG": "context_length_exceeded",
    "TOO_MANY_REQUESTS": "rate_limit_exceeded",
    "INVALID_INPUT": "invalid_value",
    "UNPROCESSABLE_CONTENT": "invalid_value",
}
"""OpenAI's names of ours. Else ours in lower case."""
FINAL = (402, 409)
"""Statuses of problems that would come again. The SDK would try these twice more."""
_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


def openai_error(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of an error for a problem."""
    status, code = problem["status"], problem["code"]
    message = problem["detail"]
    faults = problem.get("errors") or ()
    field = problem.get("field")
    if faults:
        field = field or faults[0].get("pointer")
        message = " ".join(f"{_param(_field_of(fault))}: {fault['message']}." for fault in faults)
    return error_body(
        status,
        message,
        code=CODES_OF_STATUSES.get(status) or CODES.get(code, code.lower()),
        param=_param(field) or None,
    )


def _field_of(fault: Mapping[str, Any]) -> str:
    location: str = fault.get("pointer") or fault["location"].partition(".")[2] or "body"
    return location


def _param(pointer: str | None) -> str:
    """`/messages/0/role` as `messages[0].role`."""
    dotted = (pointer or "").removeprefix("/").replace("/", ".")
    return _INDEX.sub(r"[\1]", dotted)


class OpenAIErrors:
    """Gives the answers below `OPENAI_PREFIX` the form and the headers of OpenAI's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{OPENAI_PREFIX}/"):
            await self._app(scope, receive, send)
            return
        start: Message | None = None
        problem = b""

        async def send_translated(message: Message) -> None:
            nonlocal start, problem
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = f"req_{uuid4().hex}"
                headers.update(_rate_headers(scope))
                if _is_problem(message):
                    start = message
                    return
            elif start is not None:
                problem += message.get("body", b"")
                if not message.get("more_body", False):
                    for each in _translated(start, problem):
                        await send(each)
                return
            await send(message)

        await self._app(scope, receive, send_translated)


def _is_problem(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith(MEDIA_TYPE)


def _translated(start: Message, problem: bytes) -> list[Message]:
    status = start["status"]
    said = json.loads(problem)
    body = json.dumps(openai_error(said)).encode()
    headers = MutableHeaders(scope=start)
    headers["content-type"] = "application/json"
    headers["content-length"] = str(len(body))
    if status in FINAL:
        headers["x-should-retry"] = "false"
    return [
        {**start, "status": STATUSES_OF_CODES.get(said["code"], STATUSES.get(status, status))},
        {"type": "http.response.body", "body": body},
    ]


def _rate_headers(scope: Scope) -> dict[str, str]:
    left: RequestsLeft | None = scope.get("state", {}).get("requests_left")
    if left is None:
        return {}
    return {
        "x-ratelimit-limit-requests": str(left.limit),
        "x-ratelimit-remaining-requests": str(left.remaining),
        "x-ratelimit-reset-requests": f"{left.reset_seconds:.3f}s",
    }
