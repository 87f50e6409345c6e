"""The header Idempotency-Key of requests that make something other than a job."""

import hashlib
from contextlib import suppress
from typing import Annotated

import orjson
from fastapi import Depends, Request

from promptstack.api.http.auth import CurrentCaller
from promptstack.api.http.bodies import IdempotencyKey
from promptstack.repositories.idempotency import KeyedRequest


async def keyed_request(
    request: Request, caller: CurrentCaller, key: IdempotencyKey = None
) -> KeyedRequest | None:
    """What is known of a request with a key; None without one."""
    if key is None:
        return None
    return KeyedRequest(
        user_id=caller.user_id,
        key=key,
        action=f"{request.method} {request.url.path}",
        request_hash=hash_of(await request.body(), request.url.query),
    )


Keyed = Annotated[KeyedRequest | None, Depends(keyed_request)]
"""For a route whose service makes its object once a key; see `services/idempotency/`."""


def hash_of(body: bytes, query: str) -> str:
    """Identify what a caller has said, however their JSON is spaced and sorted.

    Without a password: from this hash, which is stored, it could be guessed.
    """
    with suppress(orjson.JSONDecodeError):  # no JSON: as it is
        said = orjson.loads(body)
        if isinstance(said, dict):
            said.pop("password", None)
        body = orjson.dumps(said, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(query.encode() + b"\n" + body).hexdigest()
