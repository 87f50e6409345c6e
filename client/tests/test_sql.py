"""Jobs enqueued in a caller's own transaction, by each driver, as a role that may do only that."""

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import asyncpg
import psycopg
import psycopg2
import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from promptstack_client import Client, NotFound
from promptstack_client.sql import enqueue_embedding, enqueue_generation

HOST, DATABASE, ROLE = os.environ["PROMPTSTACK_TEST_DATABASE"].split()
Enqueue = Callable[[Any], Any]
"""Enqueues a job by a connection; its id, or one to be awaited."""


def engine_url(driver: str) -> URL:
    return URL.create(f"postgresql+{driver}", ROLE, database=DATABASE, query={"host": HOST})


def session(driver: str) -> Callable[[Enqueue, bool], UUID]:
    def way(enqueue: Enqueue, commits: bool) -> UUID:
        engine = create_engine(engine_url(driver))
        with Session(engine) as opened:
            job: UUID = enqueue(opened)
            opened.commit() if commits else opened.rollback()
        engine.dispose()
        return job

    return way


def connection(driver: str) -> Callable[[Enqueue, bool], UUID]:
    def way(enqueue: Enqueue, commits: bool) -> UUID:
        engine = create_engine(engine_url(driver))
        with engine.connect() as opened:
            job: UUID = enqueue(opened)
            opened.commit() if commits else opened.rollback()
        engine.dispose()
        return job

    return way


def scoped(enqueue: Enqueue, commits: bool) -> UUID:
    engine = create_engine(engine_url("psycopg2"))
    opened = scoped_session(sessionmaker(engine))
    job: UUID = enqueue(opened)
    opened.commit() if commits else opened.rollback()
    opened.remove()
    engine.dispose()
    return job


def async_session(enqueue: Enqueue, commits: bool) -> UUID:
    async def way() -> UUID:
        engine = create_async_engine(engine_url("asyncpg"))
        async with AsyncSession(engine) as opened:
            job: UUID = await enqueue(opened)
            await (opened.commit() if commits else opened.rollback())
        await engine.dispose()
        return job

    return asyncio.run(way())


def async_connection(enqueue: Enqueue, commits: bool) -> UUID:
    async def way() -> UUID:
        engine = create_async_engine(engine_url("psycopg"))
        async with engine.connect() as opened:
            job: UUID = await enqueue(opened)
            await (opened.commit() if commits else opened.rollback())
        await engine.dispose()
        return job

    return asyncio.run(way())


def dbapi(library: Any) -> Callable[[Enqueue, bool], UUID]:
    def way(enqueue: Enqueue, commits: bool) -> UUID:
        opened = library.connect(host=HOST, dbname=DATABASE, user=ROLE)
        job: UUID = enqueue(opened)
        opened.commit() if commits else opened.rollback()
        opened.close()
        return job

    return way


def async_psycopg(enqueue: Enqueue, commits: bool) -> UUID:
    async def way() -> UUID:
        opened = await psycopg.AsyncConnection.connect(host=HOST, dbname=DATABASE, user=ROLE)
        job: UUID = await enqueue(opened)
        await (opened.commit() if commits else opened.rollback())
        await opened.close()
        return job

    return asyncio.run(way())


def with_asyncpg(enqueue: Enqueue, commits: bool) -> UUID:
    async def way() -> UUID:
        async with (
            asyncpg.create_pool(host=HOST, database=DATABASE, user=ROLE, min_size=1) as pool,
            pool.acquire() as opened,
        ):
            transaction = opened.transaction()
            await transaction.start()
            job: UUID = await enqueue(opened)
            await (transaction.commit() if commits else transaction.rollback())
        return job

    return asyncio.run(way())


WAYS: dict[str, Callable[[Enqueue, bool], UUID]] = {
    "sqlalchemy-session-psycopg2": session("psycopg2"),
    "sqlalchemy-session-psycopg3": session("psycopg"),
    "sqlalchemy-connection": connection("psycopg2"),
    "sqlalchemy-scoped-session": scoped,
    "sqlalchemy-async-session-asyncpg": async_session,
    "sqlalchemy-async-connection-psycopg3": async_connection,
    "psycopg2": dbapi(psycopg2),
    "psycopg3": dbapi(psycopg),
    "psycopg3-async": async_psycopg,
    "asyncpg-pool": with_asyncpg,
}
TAGS = ('a "quoted" one', "{braces}", "comma, and \\", "100 %s :colon")


@pytest.fixture
def http() -> Client:
    return Client()


@pytest.mark.parametrize("way", WAYS)
def test_a_job_is_there_when_its_transaction_commits(http: Client, way: str) -> None:
    def enqueue(connection: Any) -> Any:
        return enqueue_generation(
            connection,
            "Thank the customer: 100 % sure, :really.",
            provider="openai",
            model="gpt-5-mini",
            parameters={"max_tokens": 50, "temperature": 0.5},
            fallbacks=[{"provider": "demo"}],
            bulk=False,
            max_retries=3,
            expires_in=3600.5,
            tags=TAGS,
        )

    with http:
        gone = WAYS[way](enqueue, False)
        with pytest.raises(NotFound):
            http.jobs.get(gone)
        kept = WAYS[way](enqueue, True)
        done = http.jobs.wait(kept, timeout=60)
        assert "100 % sure, :really." in done.text
        assert (done.tags, done.max_retries, done.model) == (TAGS, 3, "gpt-5-mini")


@pytest.mark.parametrize("way", WAYS)
def test_a_key_makes_one_job(http: Client, way: str) -> None:
    key = str(uuid.uuid4())

    def enqueue(connection: Any) -> Any:
        messages = [{"role": "user", "content": "Once."}]
        return enqueue_generation(connection, messages=messages, idempotency_key=key)

    with http:
        assert WAYS[way](enqueue, True) == WAYS[way](enqueue, True)


@pytest.mark.parametrize("way", ["psycopg2", "asyncpg-pool"])
def test_a_document_is_embedded(http: Client, way: str) -> None:
    def enqueue(connection: Any) -> Any:
        return enqueue_embedding(
            connection, "A lamp of brass.", f"lamps/{way}", provider="local", chunk_tokens=64
        )

    with http:
        job = http.jobs.wait(WAYS[way](enqueue, True), timeout=60)
        assert job.checked()["chunks"] == 1


def test_the_types_say_what_is_to_be_awaited() -> None:
    """mypy reads this: each driver's own types fit one way only."""

    def waits(
        session: Session, raw: psycopg2.extensions.connection, newer: psycopg.Connection[Any]
    ) -> list[UUID]:
        return [
            enqueue_generation(session, "x"),
            enqueue_generation(raw, "x"),
            enqueue_embedding(newer, "x", "y"),
        ]

    def is_awaited(
        session: AsyncSession, newer: psycopg.AsyncConnection[Any]
    ) -> list[Awaitable[UUID]]:
        return [enqueue_generation(session, "x"), enqueue_embedding(newer, "x", "y")]

    assert waits.__name__ != is_awaited.__name__
