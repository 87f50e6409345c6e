"""The HTTP clients of the providers' SDKs, as we want them."""

from contextvars import ContextVar
from functools import partial
from typing import Any

import aiohttp
import httpx2

CONNECT_SECONDS = 10.0
OWN_HEADERS = ("anthropic-version",)
"""Those that we give a client ourselves."""
# The aiohttp transport keeps every connection up to `max_connections` alive and ignores
# `max_keepalive_connections`; httpx2's own heeds both. Idle ones are dropped just before uvicorn,
# which serves most compatible APIs, drops them after 5 s: a POST that meets a closing connection
# is lost.
CONNECTIONS = httpx2.Limits(
    max_connections=1_000, max_keepalive_connections=1_000, keepalive_expiry=4.0
)

LONGEST_HEADER = 131_072
"""Bytes of a header. By default aiohttp refuses answers with one over 8 KB, as proxies send."""
MOST_HEADERS = 1_000
_ANSWERS: ContextVar[list[httpx2.Response]] = ContextVar("answers")


def kept_answers() -> list[httpx2.Response]:
    """The list to which the answers of this task's next call are added as they come."""
    answers: list[httpx2.Response] = []
    _ANSWERS.set(answers)
    return answers


async def keep(answer: httpx2.Response) -> None:
    """Keep an answer as it came: a hook of an SDK's client."""
    await answer.aread()
    answers = _ANSWERS.get(None)
    if answers is not None:
        answers.append(answer)


def forget_environment(client: Any) -> None:
    """Let an SDK's client send nothing that the environment names for the provider itself.

    Its organisation and its headers, which may hold a key, are no other server's business.
    """
    if hasattr(client, "organization"):
        client.organization = client.project = None
    given = getattr(client, "_custom_headers", {})
    client._custom_headers = {name: given[name] for name in given if name in OWN_HEADERS}


def widened(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """An SDK's client on aiohttp that takes answers with more and longer headers than aiohttp."""
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
