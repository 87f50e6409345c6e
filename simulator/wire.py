"""The types between a provider's wire and the server: answers and refusals, without HTTP."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from promptstack.simulator.faults import Fault


@dataclass(frozen=True)
class Stream:
    """An answer as server-sent events."""

    events: Sequence[bytes]
    refuse: Callable[[Mapping[str, Any]], bytes]
    """Makes the event that ends a stream with an error, from the body of a refusal."""


@dataclass(frozen=True)
class Content:
    """The content of a file, which is made while it is sent."""

    blocks: Iterable[bytes]
    size: int
    filename: str


@dataclass(frozen=True)
class Answer:
    """A good answer and its cost."""

    body: Mapping[str, Any]
    billed: tuple[str, ...] = ()
    """Keys for the ledger, one for each piece of work."""
    input_tokens: int = 0
    output_tokens: int = 0
    """What the limits are charged with."""
    stream: Stream | None = None
    """The same as a stream, if that was asked for."""
    content: Content | None = None
    """What is sent instead of the body."""


class Refusal(Exception):
    """The request is refused before any work is done."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True)
class ProviderRequest:
    """A provider call, as an endpoint receives it."""

    body: Mapping[str, Any]
    path: Mapping[str, str]
    """The named parts of the path, such as Gemini's model."""
    fault: Fault
    """A fault of content to bend the answer by."""
    query: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    """Where the caller found the simulator, for the addresses in answers."""


Endpoint = Callable[[ProviderRequest], Answer]
"""Answers a call. Raises `Refusal`."""


def work(endpoint: Endpoint, ask: ProviderRequest) -> Answer:
    """Answer a call. Raises `Refusal` for a fault too, and for a body of another form."""
    fault = ask.fault
    if fault.kind == "status":
        raise Refusal(fault.status, fault.message, fault.code)
    try:
        return endpoint(ask)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # Endpoints read bodies without checks; this body was malformed.
        raise Refusal(400, f"The request has another form than expected: {error}") from error


@dataclass(frozen=True)
class LimitStatus:
    """The state of one limit of a model, for the headers."""

    limit: int
    """A minute."""
    remaining: int
    reset_seconds: float
    """Until it is full again."""


LimitHeaders = Callable[[Mapping[str, LimitStatus]], Mapping[str, str]]
"""Makes the provider's headers from the limits that are set, of the names `requests`, `tokens`,
`input_tokens` and `output_tokens`."""


@dataclass(frozen=True)
class Wire:
    """One provider's API."""

    endpoints: Mapping[tuple[str, str], Endpoint]
    """By method and path."""
    refuse: Callable[[Refusal, str], Mapping[str, Any]]
    """Makes the provider's error body; the second argument is the id of the call."""
    limit_headers: LimitHeaders
    request_id_header: str = "x-request-id"
    tells_when_in_body: bool = False
    """Whether a refusal says there when to come again, and not in headers."""


def encode(body: Mapping[str, Any], *, has_nan: bool = False) -> bytes:
    """Write JSON. A vector may be an array, which is written ten times as fast as a list."""
    if has_nan:
        # Only the standard library writes a NaN.
        return json.dumps(body, default=lambda vector: vector.tolist()).encode()
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
