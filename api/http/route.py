"""A route of the API: it knows who asks before it reads what they send, and reads off the loop."""

import asyncio
import json
from codecs import BOM_UTF8
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any
from uuid import UUID
from weakref import WeakValueDictionary

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

from promptstack.api.http.auth import caller_of
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.json_text import NotExact, load_json

SMALL_BYTES = 32_000
"""A body that is parsed and checked in some milliseconds."""
LARGE_READ_AT_ONCE = 8
"""Larger bodies in memory at once; others wait, unread."""
LARGE_OF_ONE_USER = 4
"""Of these: who sends slowly, or much, holds up nobody else."""
LARGE_HANDLED_AT_ONCE = 1
"""Of these parsed, checked and answered: two at once take twice the memory, and no less time."""

_BEGINS_ONE = np.zeros(256, dtype=np.bool_)
_BEGINS_ONE[list(b",:[{")] = True
"""What stands before each value or name but the first, outside of texts."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class AuthenticatedRoute(APIRoute):
    """Asks for the key first, and keeps the event loop free of large bodies.

    FastAPI alone reads and parses a body, and only then asks for the key; and it parses and checks
    on the event loop, where a large body holds up everybody.
    """

    def get_route_handler(self) -> Handler:
        """Return what handles a request."""
        handle = super().get_route_handler()
        has_body = self.body_field is not None

        async def admit(request: Request) -> Response:
            request = ExactRequest(request.scope, request.receive)
            request.state.caller = await to_thread.run_sync(caller_of, request)
            if not has_body:
                return await handle(request)
            return await _read_and_handle(request, handle)

        return admit


class ExactRequest(Request):
    """Takes no body whose values would be others once they are read."""

    async def json(self) -> Any:
        """The body. Raises `json.JSONDecodeError`, and what `NotExact` becomes."""
        body = (await self.body()).removeprefix(BOM_UTF8)
        try:
            return load_json(body, "The body")
        except NotExact as error:
            # The framework lets no other error through.
            raise HTTPException(422, str(error)) from error


class LargeBodies:
    """The places that large bodies wait for, of one application."""

    def __init__(self, max_values: int) -> None:
        self.max_values = max_values
        self.reading = CapacityLimiter(LARGE_READ_AT_ONCE)
        self.handling = CapacityLimiter(LARGE_HANDLED_AT_ONCE)
        self._of_users: WeakValueDictionary[UUID, CapacityLimiter] = WeakValueDictionary()

    def of_user(self, user_id: UUID) -> CapacityLimiter:
        """The places of one user."""
        return self._of_users.setdefault(user_id, CapacityLimiter(LARGE_OF_ONE_USER))


async def _read_and_handle(request: Request, handle: Handler) -> Response:
    if _length(request) <= SMALL_BYTES:
        return await handle(request)
    large: LargeBodies = request.app.state.large_bodies
    async with large.of_user(request.state.caller.user_id), large.reading:
        body = await request.body()
        # In an event loop of its own, in a thread: parsing and checking don't await anything.
        work = partial(_handle_large, request, handle, body, large.max_values)
        return await to_thread.run_sync(work, limiter=large.handling)


def _length(request: Request) -> float:
    """The length that the body is said to have; without one, it has no known end."""
    said = request.headers.get("content-length", "")
    if said.isdecimal():
        return int(said)
    return float("inf") if "transfer-encoding" in request.headers else 0


def _handle_large(request: Request, handle: Handler, body: bytes, max_values: int) -> Response:
    if not json.detect_encoding(body).startswith("utf-8"):
        # Others are read as well, and their bytes can't be counted as they stand.
        raise InvalidInput("The body is not in UTF-8; send it so, as JSON is exchanged.")
    if count_values(body) > max_values:
        raise InvalidInput(
            f"The body has more than {max_values} JSON values (MAX_BODY_VALUES); send fewer."
        )
    return asyncio.run(handle(request))


def count_values(body: bytes) -> int:
    """Count the values and the names of fields in a JSON body in UTF-8, without making any.

    In numpy, which lets other threads run meanwhile.
    """
    text = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), dtype=np.uint8)
    is_outside = ~np.logical_xor.accumulate(text == ord('"'))
    return int(np.count_nonzero(_BEGINS_ONE[text] & is_outside)) + 1
