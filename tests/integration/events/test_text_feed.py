"""The reader of all texts: who is at odd positions holds up nobody."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis

from promptstack.services.events.places import Place
from promptstack.services.events.texts import MOST_ROUNDS, TextFeed
from promptstack.services.events.watcher import Watcher
from promptstack.services.streams.pieces import Piece
from promptstack.services.streams.reader import TextStreams
from promptstack.services.streams.writer import StreamBounds, TextStreamWriter
from promptstack.tasks import connections
from promptstack.tasks.worker_services import WorkerServices

PIECES = 5


@pytest.mark.parametrize("is_same_text", [False, True], ids=["another text", "the same text"])
def test_watchers_ahead_of_a_text_do_not_hold_up_others(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, is_same_text: bool
) -> None:
    questions = 0
    waited = []
    read = TextStreams.aread

    async def count(
        self: TextStreams, positions: Mapping[UUID, str], block_seconds: float = 0.0
    ) -> Mapping[UUID, Sequence[Piece]]:
        nonlocal questions
        questions += 1
        if block_seconds:
            waited.append(positions)
        return await read(self, positions, block_seconds)

    monkeypatch.setattr(TextStreams, "aread", count)

    async def hear() -> None:
        def connect() -> Redis:
            return connections.open_async_redis(stack.redis_url, connections=1)

        feed = TextFeed(stack.redis, connect)
        writer = TextStreamWriter(connect(), StreamBounds(1_000, 1_000_000, 60))
        text = uuid4()
        other = text if is_same_text else uuid4()
        for number in range(100):
            feed.join(other, Watcher(Place("", f"{2**40 + number}-1")))
        reader = Watcher(Place())
        feed.join(text, reader)
        stream = writer.open(text, 1)
        for number in range(PIECES):
            stream.write(f"word {number}")
            async with asyncio.timeout(60):
                await anext(reader)
        feed.close()
        await writer.aclose()
        # Each piece takes a turn or two of the reader, and some of its turns hear nothing.
        assert questions <= 10 * PIECES * MOST_ROUNDS
        assert any(positions.get(text, "").startswith(("0", "65536")) for positions in waited)

    asyncio.run(hear())


def test_a_reader_ends_also_where_redis_takes_no_notice_that_it_is_cancelled(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TextStreams.aread
    asked = asyncio.Event()

    async def take_no_notice(
        self: TextStreams, positions: Mapping[UUID, str], block_seconds: float = 0.0
    ) -> Mapping[UUID, Sequence[Piece]]:
        if block_seconds:
            return await read(self, positions, block_seconds)
        asked.set()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(TextStreams, "aread", take_no_notice)

    async def hear() -> None:
        feed = TextFeed(
            stack.redis, lambda: connections.open_async_redis(stack.redis_url, connections=1)
        )
        text = uuid4()
        for position in ("1-1", "2-1"):  # those at the second one are read for first
            feed.join(text, Watcher(Place("", position)))
        reader = feed._reader
        assert reader is not None
        await asked.wait()
        feed.close()
        ended, _ = await asyncio.wait({reader}, timeout=60)
        assert ended

    asyncio.run(hear())
