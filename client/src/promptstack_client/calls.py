"""One call of the API: what is asked, as an HTTP request, and what is answered, as a model."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from enum import Enum
from functools import cached_property
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx2
import pydantic_core
from pydantic import TypeAdapter, ValidationError

from promptstack_client.errors import UnexpectedAnswer
from promptstack_client.settings import Settings
from promptstack_client.uploads import Upload

T = TypeVar("T")

CONNECT_SECONDS = 10.0
UPLOAD_SECONDS = 600.0
"""The server answers an upload when it has read and stored all of it."""
REPEATABLE_METHODS = frozenset({"GET", "PUT", "PATCH", "DELETE"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What one call of a method asks of its route. What is None is not sent."""

    path: Mapping[str, object] = field(default_factory=dict)
    query: Mapping[str, object] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] | None = None
    upload: Upload | None = None
    idempotency_key: str | None = None
    timeout: float | None = None
    """Seconds without a byte of the answer, where they are other than the client's."""


@dataclass(frozen=True)
class Route(Generic[T]):
    """A route of the API, and how its answer is read."""

    method: str
    path: str
    answer: Any
    """The type of the answer; None where there is none."""
    inside: str | None = None
    """The field of the answer that is meant, where it is one."""
    keyed: bool = False
    """It makes something once for each idempotency key."""
    repeatable: bool = False
    """Done twice, it is the same as done once, though it is a POST without a key."""

    @cached_property
    def _adapter(self) -> TypeAdapter[T]:
        return TypeAdapter(self.answer)

    def read(self, response: httpx2.Response) -> T:
        """The answer as a model. Raises `UnexpectedAnswer`."""
        try:
            said = pydantic_core.from_json(response.content or b"null")
            return self._adapter.validate_python(said if self.inside is None else said[self.inside])
        except (ValueError, TypeError, KeyError) as error:
            raise UnexpectedAnswer(
                f"{response.request.method} {response.request.url} answered "
                f"{response.status_code}, but nothing of this API: {_reason(error)}. "
                "Is it the address of Prompt Stack?"
            ) from error


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request that may be sent several times, always with the same idempotency key."""

    route: Route[T]
    asked: Asked

    @classmethod
    def of(cls, route: Route[T], asked: Asked) -> "Call[T]":
        """A call, with a key of its own where the route takes one and the caller gave none."""
        if route.keyed and asked.idempotency_key is None:
            asked = replace(asked, idempotency_key=str(uuid.uuid4()))
        return cls(route, asked)

    @property
    def repeatable(self) -> bool:
        """Whether nothing is done twice when the first request has arrived after all."""
        return self.route.repeatable or self.route.keyed or self.route.method in REPEATABLE_METHODS

    def request(
        self, client: httpx2.Client | httpx2.AsyncClient, settings: Settings
    ) -> httpx2.Request:
        """The HTTP request."""
        asked = self.asked
        path = self.route.path.format_map(
            {name: quote(text_of(value), safe="") for name, value in asked.path.items()}
        )
        headers = {**settings.headers, "Accept": "application/json", **asked.headers}
        if asked.idempotency_key is not None:
            headers["Idempotency-Key"] = asked.idempotency_key
        content = None
        if asked.body is not None:
            headers["Content-Type"] = "application/json"
            content = pydantic_core.to_json(given(asked.body))
        seconds = asked.timeout or settings.timeout
        if asked.upload is not None:
            headers |= asked.upload.headers
            seconds = max(seconds, UPLOAD_SECONDS)
        request = client.build_request(
            self.route.method,
            settings.url + path,
            params=_parameters(asked.query),
            headers=headers,
            content=content,
            timeout=httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, settings.timeout)),
        )
        if asked.upload is not None:
            request.stream = asked.upload
        return request

    def continued(self, timeout: float | None = None, **query: object) -> "Call[T]":
        """The same call with more in its query, and maybe another timeout."""
        asked = replace(self.asked, query={**self.asked.query, **query}, timeout=timeout)
        return replace(self, asked=asked)


def given(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def text_of(value: object) -> str:
    """A value as it stands in a path or a query."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)


def _parameters(query: Mapping[str, Any]) -> httpx2.QueryParams:
    pairs: list[tuple[str, str]] = []
    for name, value in given(query).items():
        values = value if isinstance(value, list | tuple | set) else [value]
        pairs += [(name, text_of(each)) for each in values]
    return httpx2.QueryParams(tuple(pairs))


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)
