"""A route that checks the API key before it reads the body, and reads large bodies in a thread."""

import asyncio
import gc
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from promptstack.api.http.auth import caller_of
from promptstack.api.http.later import SlotsOfUsers
from promptstack.api.permissions import Permission, permission_of_route
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.json_text import NotExact, load_json

SMALL_BYTES = 32_000
"""A body of this size is parsed and checked in some milliseconds."""
LARGE_READ_AT_ONCE = 8
"""Larger bodies in memory at once. Others wait unread."""
LARGE_OF_ONE_USER = 4
"""Of these: a user who sends slowly, or much, holds up no other."""
LARGE_HANDLED_AT_ONCE = 1
"""Parsed, checked and answered at once: two take twice the memory, and no less time."""

_BEGINS_ONE = np.zeros(256, dtype=np.bool_)
_BEGINS_ONE[list(b",:[{")] = True
"""The characters before each value or name but the first, outside of texts."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ProtectedRoute(APIRoute):
    """Checks who sends a request and what they may do, and keeps large bodies off the event loop.

    FastAPI alone parses the body before it asks for the key, and does so on the event loop, where
    a large body holds up all requests. A route that `api/permissions.py` doesn't know can't be
    made.
    """

    def get_route_handler(self) -> Handler:
        """Return the function that handles a request."""
        handle = super().get_route_handler()
        has_body = self.body_field is not None
        permission = _permission_of(self)

        async def admit(request: Request) -> Response:
            request = ExactRequest(request.scope, request.receive)
            if permission.is_public:
                if has_body and _length(request) > SMALL_BYTES:
                    # Nobody knows who sends it, and it would be parsed on the event loop.
                    raise InvalidInput(
                        f"Before you have signed in, a body has at most {SMALL_BYTES:,} bytes, and "
                        "a header that says how many."
                    )
                return await handle(request)
            request.state.caller = caller = await caller_of(request)
            permission.check(caller)
            if not has_body:
                return await handle(request)
            return await self.read_and_handle(request, handle)

        return admit

    async def read_and_handle(self, request: Request, handle: Handler) -> Response:
        """Read the body of an admitted request, and handle it."""
        return await _read_and_handle(request, handle)


def _permission_of(route: APIRoute) -> Permission:
    """What all methods of a route need."""
    first, *others = {permission_of_route(method, route.path) for method in route.methods or ()}
    if others:
        raise LookupError(f"The methods of {route.path} need different things; make two routes.")
    return first


class ExactRequest(Request):
    """Refuses a body with values that would change when they are read."""

    async def json(self) -> Any:
        """The body. Raises `json.JSONDecodeError`, and `HTTPException` for a value that changes."""
        body = (await self.body()).removeprefix(BOM_UTF8)
        try:
            return load_json(body, "The body")
        except NotExact as error:
            # The framework lets no other error through.
            raise HTTPException(422, str(error)) from error


class LargeBodies:
    """The slots that large bodies of one application wait for."""

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.reading = CapacityLimiter(LARGE_READ_AT_ONCE)
        self.handling = CapacityLimiter(LARGE_HANDLED_AT_ONCE)
        self.of_users = SlotsOfUsers(LARGE_OF_ONE_USER)


async def _read_and_handle(request: Request, handle: Handler) -> Response:
    if _length(request) <= SMALL_BYTES:
        return await handle(request)
    large: LargeBodies = request.app.state.large_bodies
    async with large.of_users.of(request.state.caller.user_id), large.reading:
        body = await request.body()
        # In an event loop of its own, in a thread: parsing and checking await nothing.
        work = partial(_handle_large, request, handle, body, large.max_values)
        return await to_thread.run_sync(work, limiter=large.handling)


def _length(request: Request) -> float:
    """The length that the headers state; infinite where they state none."""
    said = request.headers.get("content-length", "")
    if said.isdecimal():
        return int(said)
    return float("inf") if "transfer-encoding" in request.headers else 0


def _handle_large(request: Request, handle: Handler, body: bytes, max_values: int) -> Response:
    if not json.detect_encoding(body).startswith("utf-8"):
        # json reads other encodings too, but the values in their bytes can't be counted.
        raise InvalidInput("The body is not in UTF-8; send it so, as JSON is exchanged.")
    if count_values(body) > max_values:
        raise InvalidInput(
            f"The body has more than {max_values} JSON values (MAX_BODY_VALUES); send fewer."
        )
    with _no_collection():
        return asyncio.run(handle(request))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no garbage meanwhile: of the many objects that a large body becomes, none is any."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def count_values(body: bytes) -> int:
    """Count the values and the names of fields in a JSON body in UTF-8, without making them.

    numpy lets other threads run meanwhile.
    """
    text = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), dtype=np.uint8)
    is_outside = ~np.logical_xor.accumulate(text == ord('"'))
    return int(np.count_nonzero(_BEGINS_ONE[text] & is_outside)) + 1
