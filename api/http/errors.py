"""How each error is answered, as a problem."""

import logging
import math
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from promptstack.api.http.problems import DETAILS, Fault, respond
from promptstack.api.http.transfers import TooLarge
from promptstack.config.errors import PromptStackError
from promptstack.config.logging import log_unexpected
from promptstack.repositories.errors import LedgerOutdated, TransientLedgerError
from promptstack.services.access.errors import SignInBusy, TooManyAttempts, TooManyRequests
from promptstack.services.errors import (
    BudgetReached,
    IdempotencyConflict,
    InvalidInput,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    NotYet,
    SpendingHeld,
    WrongState,
)
from promptstack.services.events.errors import TooManyWatchers, WatchersFull
from promptstack.services.limiter.errors import CallNotSent
from promptstack.services.llm.errors import ProviderError
from promptstack.services.notifications.errors import MailNotConfigured
from promptstack.services.validation.bounds import pointer

logger = logging.getLogger(__name__)

STATUSES: dict[type[PromptStackError], int] = {
    TooLarge: 413,
    InvalidInput: 422,
    NotAuthenticated: 401,
    NotPermitted: 403,
    NotFound: 404,
    IdempotencyConflict: 409,
    WrongState: 409,
    TooManyAttempts: 429,
    TooManyRequests: 429,
    TooManyWatchers: 429,
    SignInBusy: 503,
    WatchersFull: 503,
    TransientLedgerError: 503,
    MailNotConfigured: 503,
    LedgerOutdated: 503,
    ProviderError: 502,
    CallNotSent: 503,
    BudgetReached: 402,
    SpendingHeld: 503,
}
LATER = (
    TransientLedgerError,
    TooManyAttempts,
    TooManyRequests,
    TooManyWatchers,
    SignInBusy,
    WatchersFull,
    CallNotSent,
    SpendingHeld,
    NotYet,
)
"""What is over after a while: the answer says when to try again."""
RETRY_AFTER_SECONDS = 5
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
MAX_FAULTS = 20
MAX_LOCATION_PARTS = 8
_FIELD_NAME = re.compile(r"[A-Za-z_][\w-]{0,63}", re.ASCII)


async def ours(request: Request, error: PromptStackError) -> Response:
    """Answer one of our own errors."""
    status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
    if status == 500:
        return unexpected(error)
    headers = {}
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, LATER):
        headers["Retry-After"] = str(math.ceil(error.retry_after or RETRY_AFTER_SECONDS))
    field = getattr(error, "pointer", "") or None
    return respond(status, str(error), code=error.code, field=field, headers=headers)


async def refused(request: Request, error: HTTPException) -> Response:
    """Answer what the framework refuses: an unknown address, a wrong method, a large body."""
    if isinstance(error.__cause__, PromptStackError):
        return await ours(request, error.__cause__)
    detail = None if error.status_code in DETAILS else error.detail
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
    return respond(error.status_code, detail, headers=headers)


async def invalid(request: Request, error: RequestValidationError) -> Response:
    """Answer a request that does not fit its schema."""
    problems = error.errors()
    if any(problem["loc"][0] == "path" for problem in problems):
        described = _described(request)
        if described is not None and request.method.lower() not in described:
            # `GET /runs/embeddings` was read as a run of that id.
            return await refused(request, HTTPException(405))
    if isinstance(error.body, bytes):
        # The framework leaves a body unread that doesn't say that it is JSON.
        return respond(415, "The body must be JSON; send Content-Type: application/json.")
    if problems and problems[0]["type"] == "json_invalid":
        position = problems[0]["loc"][-1]
        return respond(400, f"The body is not JSON: it goes wrong at character {position}.")
    faults = [_fault(problem, error.body) for problem in problems[:MAX_FAULTS]]
    fields = {fault.pointer or fault.location.partition(".")[2] for fault in faults}
    return respond(
        422,
        "The request is not valid.",
        code=InvalidInput.code,
        field=fields.pop() if len(fields) == 1 else None,
        errors=faults,
    )


async def gone(request: Request, error: ClientDisconnect) -> Response:
    """End a request whose sender went away while sending it. Nobody reads this answer."""
    return respond(400, "The request did not arrive whole.")


def unexpected(error: Exception) -> Response:
    """Log a bug and answer 500."""
    log_unexpected(logger, "a request failed", error)
    return respond(500)


def _methods_of(request: Request) -> list[str]:
    """The methods that the address takes. The framework names those of its first route only."""
    described = _described(request)
    if described is not None:
        return [method for method in METHODS if method.lower() in described]
    return [
        method
        for method in METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] is Match.FULL
            for route in request.app.router.routes
        )
    ]


def _described(request: Request) -> Mapping[str, Any] | None:
    """What the description says of just this address; None where it has a parameter."""
    described: Mapping[str, Any] | None = request.app.openapi()["paths"].get(request.url.path)
    return described


def _fault(problem: Mapping[str, Any], body: Any) -> Fault:
    """Say what is wrong and where. A part that can't be a field's name may be a prompt: `?`."""
    place = problem["loc"][:MAX_LOCATION_PARTS]
    names = [
        str(part) if isinstance(part, int) or _FIELD_NAME.fullmatch(part) else "?" for part in place
    ]
    return Fault(
        location=".".join(names),
        pointer=_pointer(place[1:], names[1:], body) if names[:1] == ["body"] else None,
        message=problem["msg"].removeprefix("Value error, "),
    )


def _pointer(place: Sequence[str | int], names: Sequence[str], body: Any) -> str:
    """Where in the body it is. The validator's place also names which of several forms it tried."""
    found: list[str] = []
    for number, (part, name) in enumerate(zip(place, names, strict=True)):
        there = (
            0 <= part < len(body)
            if isinstance(body, list) and isinstance(part, int)
            else isinstance(body, dict) and part in body
        )
        is_missing = number == len(place) - 1 and isinstance(body, dict)
        if there or is_missing:
            found.append(name)
            body = body[part] if there else None
    return pointer(found)


HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    PromptStackError: ours,
    HTTPException: refused,
    ClientDisconnect: gone,
    RequestValidationError: invalid,
}
