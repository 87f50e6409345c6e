"""Problems below a prefix in the form of the API that is spoken there.

It happens at the edge, so that what any part of the server refuses has the same form.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from promptstack.api.http.problems import MEDIA_TYPE
from promptstack.services.access.request_limits import RequestsLeft

FINAL = (402, 409)
"""Statuses of problems that would come again. The SDKs would try these twice more."""

_INDEX = re.compile(r"\.(\d+)(?=\.|$)")


class WireErrors(ABC):
    """Gives the answers below a prefix the form and the headers of another API."""

    prefix: ClassVar[str]
    request_id_header: ClassVar[str]

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    @abstractmethod
    def status_of(self, problem: Mapping[str, Any]) -> int:
        """The status that clients of this API expect for a problem."""

    @abstractmethod
    def body_of(self, problem: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        """The body of an error."""

    @abstractmethod
    def rate_headers(self, left: RequestsLeft) -> dict[str, str]:
        """How many requests the key may still send."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not scope["path"].startswith(f"{self.prefix}/"):
            await self._app(scope, receive, send)
            return
        request_id = f"req_{uuid4().hex}"
        start: Message | None = None
        problem = b""

        async def send_translated(message: Message) -> None:
            nonlocal start, problem
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[self.request_id_header] = request_id
                left: RequestsLeft | None = scope.get("state", {}).get("requests_left")
                headers.update({} if left is None else self.rate_headers(left))
                if _is_problem(message):
                    start = message
                    return
            elif start is not None:
                problem += message.get("body", b"")
                if not message.get("more_body", False):
                    for each in self._translated(start, problem, request_id):
                        await send(each)
                return
            await send(message)

        await self._app(scope, receive, send_translated)

    def _translated(self, start: Message, problem: bytes, request_id: str) -> list[Message]:
        said = json.loads(problem)
        body = json.dumps(self.body_of(said, request_id)).encode()
        headers = MutableHeaders(scope=start)
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        if start["status"] in FINAL:
            headers["x-should-retry"] = "false"
        return [
            {**start, "status": self.status_of(said)},
            {"type": "http.response.body", "body": body},
        ]


def _is_problem(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith(MEDIA_TYPE)


def dotted(pointer: str | None) -> str:
    """`/messages/0/role` as `messages[0].role`."""
    return _INDEX.sub(r"[\1]", (pointer or "").removeprefix("/").replace("/", "."))


def message_of(problem: Mapping[str, Any]) -> tuple[str, str | None]:
    """What is wrong, with all faults of a body, and the first field at fault as a JSON pointer."""
    message: str = problem["detail"]
    field: str | None = problem.get("field")
    if faults := problem.get("errors") or ():
        field = field or faults[0].get("pointer")
        message = " ".join(f"{dotted(_field_of(one))}: {one['message']}." for one in faults)
    return message, field


def _field_of(fault: Mapping[str, Any]) -> str:
    location: str = fault.get("pointer") or fault["location"].partition(".")[2] or "body"
    return location
