"""Enqueue within your own transaction: the job exists when you commit, and not before.

Works with SQLAlchemy (Session, Connection and their asyncio twins), psycopg 2 and 3, and asyncpg;
none of them is needed before you use it. With a connection of asyncio, await what is returned.
The database's role must have been allowed to enqueue: `promptstack sql grant ROLE --user EMAIL`.
"""

import inspect
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, TypedDict, Unpack, overload
from uuid import UUID

Job = UUID
Json = Mapping[str, Any]


class Sync(Protocol):
    """A connection whose methods wait: SQLAlchemy, psycopg 2 and 3, Django."""

    def rollback(self) -> None: ...


class Async(Protocol):
    """A connection of asyncio: SQLAlchemy, psycopg 3."""

    def rollback(self) -> Coroutine[Any, Any, None]: ...


class Asyncpg(Protocol):
    """A connection of asyncpg."""

    def fetchval(self, query: str, *args: Any) -> Coroutine[Any, Any, Any]: ...


class JobTerms(TypedDict, total=False):
    """What may be said of every job. Unset is left to the server's defaults."""

    provider: str
    model: str
    bulk: bool
    """Let interactive jobs go first."""
    idempotency_key: str
    """Enqueued again with the same request, it returns the job that is there."""
    max_retries: int
    expires_in: float
    """Seconds after which it ends as expired where it is not done."""
    tags: Sequence[str]


class GenerationTerms(JobTerms, total=False):
    """What may be said of a generation, beside its prompt."""

    messages: Sequence[Json]
    parameters: Json
    """How the model is to answer: `system`, `temperature`, `max_tokens`, `json_schema`, ..."""
    fallbacks: Sequence[Json]


class EmbeddingTerms(JobTerms, total=False):
    """What may be said of an embedding, beside its text."""

    chunk_tokens: int
    collection: str
    """Where it is kept and searched: a name or an id."""


@overload
def enqueue_generation(
    connection: Sync, prompt: str | None = None, **terms: Unpack[GenerationTerms]
) -> UUID: ...
@overload
def enqueue_generation(
    connection: Async, prompt: str | None = None, **terms: Unpack[GenerationTerms]
) -> Awaitable[UUID]: ...
@overload
def enqueue_generation(
    connection: Asyncpg, prompt: str | None = None, **terms: Unpack[GenerationTerms]
) -> Awaitable[UUID]: ...
def enqueue_generation(connection: Any, prompt: str | None = None, **terms: Any) -> Any:
    """Enqueue a generation in the transaction of `connection`; the id of its job."""
    return _call(connection, "enqueue_generation", {"prompt": prompt, **terms})


@overload
def enqueue_embedding(
    connection: Sync, text: str, source: str, **terms: Unpack[EmbeddingTerms]
) -> UUID: ...
@overload
def enqueue_embedding(
    connection: Async, text: str, source: str, **terms: Unpack[EmbeddingTerms]
) -> Awaitable[UUID]: ...
@overload
def enqueue_embedding(
    connection: Asyncpg, text: str, source: str, **terms: Unpack[EmbeddingTerms]
) -> Awaitable[UUID]: ...
def enqueue_embedding(connection: Any, text: str, source: str, **terms: Any) -> Any:
    """Enqueue the embedding of a document in the transaction of `connection`; its job's id."""
    return _call(connection, "enqueue_embedding", {"text": text, "source": source, **terms})


_TYPES = {
    "messages": "jsonb",
    "parameters": "jsonb",
    "fallbacks": "jsonb",
    "bulk": "boolean",
    "max_retries": "integer",
    "chunk_tokens": "integer",
    "expires_in": "double precision",
}
"""The types of parameters that are no text."""
_TAGS = "ARRAY(SELECT jsonb_array_elements_text(CAST({} AS jsonb)))"
"""Lists as JSON, too: each driver has its own idea of an array."""


def _call(connection: Any, function: str, terms: Mapping[str, Any]) -> Any:
    """Call the function with what is given, in the way of the connection's driver."""
    given = {name: value for name, value in terms.items() if value is not None}
    if hasattr(connection, "fetchval"):
        names = iter(range(1, len(given) + 1))
        statement = _statement(function, given, lambda _: f"${next(names)}")
        return _returned(connection.fetchval(statement, *_values(given)))
    if _is_sqlalchemy(connection):
        from sqlalchemy import text  # noqa: PLC0415 - the caller has it, others need not

        statement = _statement(function, given, lambda name: f":{name}")
        parameters = dict(zip(given, _values(given), strict=True))
        return _returned(connection.execute(text(statement), parameters), _scalar)
    statement = _statement(function, given, lambda _: "%s")
    if inspect.iscoroutinefunction(connection.commit):
        return _fetched(connection, statement, _values(given))
    with connection.cursor() as cursor:
        cursor.execute(statement, _values(given))
        return UUID(cursor.fetchone()[0])


def _statement(function: str, given: Mapping[str, Any], mark: Callable[[str], str]) -> str:
    arguments = []
    for name in given:
        sent = mark(name)
        sent = (
            _TAGS.format(sent) if name == "tags" else f"CAST({sent} AS {_TYPES.get(name, 'text')})"
        )
        arguments.append(f"{name} => {sent}")
    return f"SELECT CAST(promptstack.{function}({', '.join(arguments)}) AS text)"


def _values(given: Mapping[str, Any]) -> list[Any]:
    is_json = {name for name, kind in _TYPES.items() if kind == "jsonb"} | {"tags"}
    return [
        json.dumps(list(value) if name != "parameters" else dict(value))
        if name in is_json
        else value
        for name, value in given.items()
    ]


def _is_sqlalchemy(connection: Any) -> bool:
    kinds = type(connection).__mro__
    return any(kind.__module__.partition(".")[0] == "sqlalchemy" for kind in kinds)


def _scalar(result: Any) -> Any:
    return result.scalar_one()


def _returned(answer: Any, read: Callable[[Any], Any] = str) -> Any:
    """The id in an answer, or in one that is still to come."""
    if not inspect.isawaitable(answer):
        return UUID(read(answer))

    async def coming() -> UUID:
        return UUID(read(await answer))

    return coming()


async def _fetched(connection: Any, statement: str, values: list[Any]) -> UUID:
    async with connection.cursor() as cursor:
        await cursor.execute(statement, values)
        return UUID((await cursor.fetchone())[0])
