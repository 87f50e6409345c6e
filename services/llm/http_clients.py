"""How we set up the HTTP clients of the providers' SDKs."""

from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
import httpx2

CONNECT_SECONDS = 10.0
OWN_HEADERS = ("anthropic-version",)
"""The headers that we set on a client ourselves."""
# The aiohttp transport ignores `max_keepalive_connections`; httpx2's own heeds it. Idle connections
# are closed after 4 s, because uvicorn, which serves most compatible APIs, closes them after 5 s: a
# POST on a closing connection is lost.
CONNECTIONS = httpx2.Limits(
    max_connections=1_000, max_keepalive_connections=1_000, keepalive_expiry=4.0
)

LONGEST_HEADER = 131_072
"""Bytes of one header. aiohttp's default is 8 KB, and proxies send longer ones."""
MOST_HEADERS = 1_000
_ANSWERS: ContextVar[list[httpx2.Response]] = ContextVar("answers")


def kept_answers() -> list[httpx2.Response]:
    """A list to which `keep` adds the answers to the next call of this task."""
    answers: list[httpx2.Response] = []
    _ANSWERS.set(answers)
    return answers


async def keep(answer: httpx2.Response) -> None:
    """Keep an answer as it came. This is a hook of an SDK's client."""
    await answer.aread()
    answers = _ANSWERS.get(None)
    if answers is not None:
        answers.append(answer)


def forget_environment(client: Any) -> None:
    """Remove what an SDK's client took from the environment for the provider itself.

    Another server must not see its organisation and headers, which may hold a key.
    """
    if hasattr(client, "organization"):
        client.organization = client.project = None
    given = getattr(client, "_custom_headers", {})
    client._custom_headers = {name: given[name] for name in given if name in OWN_HEADERS}


def widened(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """Let an SDK's client on aiohttp accept more and longer headers than its default."""
    transports: list[Any] = [client._transport, *client._mounts.values()]
    for transport in transports:
        if transport is not None:
            transport.client = partial(_session, transport)
    return client


def _session(transport: Any) -> aiohttp.ClientSession:
    transport.client = None
    made: aiohttp.ClientSession = transport.get_client()
    connector = made.connector
    made.detach()
    return aiohttp.ClientSession(
        connector=connector,
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
        max_headers=MOST_HEADERS,
    )
