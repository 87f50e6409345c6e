"""Who sends a request, and whose jobs they may see."""

from typing import Annotated
from uuid import UUID

from anyio import to_thread
from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field

from promptstack.api.http.browsers import browser_caller
from promptstack.api.http.key_lookups import KeyLookups
from promptstack.api.http.peers import address_of
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import MAX_EMAIL_CHARACTERS
from promptstack.services.access.keys import PREFIX, is_use_unknown
from promptstack.services.access.request_limits import RequestsUsedUp
from promptstack.services.errors import NotAuthenticated
from promptstack.tasks.composition import PromptStack


async def get_stack(request: Request) -> PromptStack:
    """Return what the application was made over."""
    stack: PromptStack = request.app.state.stack
    return stack


Stack = Annotated[PromptStack, Depends(get_stack)]
Bearer = Annotated[
    HTTPAuthorizationCredentials | None,
    Depends(
        HTTPBearer(
            auto_error=False,
            description="An API key: `ps_...`, or an access token of `/auth/login`.",
        )
    ),
]
Key = Annotated[
    str | None,
    Depends(APIKeyHeader(name="X-API-Key", auto_error=False, description="The same key.")),
]


async def caller_of(request: Request) -> Caller:
    """Return who sends a request, and count it. Raises as `identify`, and `TooManyRequests`."""
    stack: PromptStack = request.app.state.stack
    credential = _credential(request)
    if credential.startswith(PREFIX):
        lookups: KeyLookups = request.app.state.key_lookups
        key = await lookups.find(credential)
        caller = stack.keys.caller_with(key, address_of(request))
        if key is not None and is_use_unknown(key):
            await to_thread.run_sync(stack.keys.note_use, key)
    else:
        caller = await to_thread.run_sync(identify, request)
    if caller.requests_a_minute is not None:
        take = stack.request_limits.take
        try:
            request.state.requests_left = await to_thread.run_sync(take, caller)
        except RequestsUsedUp as refused:
            request.state.requests_left = refused.left
            raise
    return caller


def identify(request: Request) -> Caller:
    """Return who sends a request. Raises `NotAuthenticated` and `ForgedRequest`.

    A key or an access token goes before what a browser or its proxy adds by itself.
    """
    credential = _credential(request)
    if not credential:
        if (caller := browser_caller(request)) is not None:
            return caller
        raise NotAuthenticated(
            "An API key is needed: send `Authorization: Bearer ps_...` or `X-API-Key: ps_...`. "
            "Make one with `promptstack keys create`. Or sign in at /auth/login."
        )
    stack: PromptStack = request.app.state.stack
    who = stack.keys if credential.startswith(PREFIX) else stack.sessions
    return who.authenticate(credential, address_of(request))


def _credential(request: Request) -> str:
    """The key or the token in the headers; empty where there is none."""
    given = {*map(_bearer, request.headers.getlist("Authorization"))}
    given |= {*request.headers.getlist("X-API-Key")}
    if given <= {""}:
        return ""
    if len(given) > 1:
        # A proxy before this server may have checked the other key.
        raise NotAuthenticated("The request has several API keys that differ; send one.")
    [credential] = given
    return credential


def _bearer(authorization: str) -> str:
    """Return the key; empty for another scheme than Bearer."""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


async def get_caller(request: Request, bearer: Bearer, key: Key) -> Caller:
    """Return who sends a request. The route has found it; `bearer` and `key` are for `/docs`."""
    caller: Caller = request.state.caller
    return caller


CurrentCaller = Annotated[Caller, Depends(get_caller)]


async def get_owner(caller: CurrentCaller) -> UUID | None:
    """Return whose objects the caller may touch; None for an administrator: everybody's."""
    return None if caller.is_admin else caller.user_id


Owner = Annotated[UUID | None, Depends(get_owner)]
"""For a route that names one object. A list asks `stack.owners` instead."""
AskedOwner = Annotated[
    str | None,
    Field(
        max_length=MAX_EMAIL_CHARACTERS,
        description="Whose: `all`, or a user's e-mail address; for administrators. Unset: yours.",
    ),
]
