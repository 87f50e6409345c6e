"""A reader of a text gets all of it, once, whatever happens to workers, to Redis and to itself."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from promptstack.config.names import TEXT_KEY
from promptstack.embedded.servers import ServerUrls
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.errors import InvalidInput
from promptstack.services.streams.pieces import Piece
from promptstack.services.streams.reader import TextStreams
from promptstack.services.streams.writer import StreamBounds, TextStream, TextStreamWriter
from promptstack.tasks.connections import open_async_redis, open_redis

WIDE = StreamBounds(most_pieces=10_000, most_bytes=1_000_000, ttl_seconds=300)
NARROW = StreamBounds(most_pieces=3, most_bytes=40, ttl_seconds=300)


class FailingRedis:
    """A client whose next exchanges fail, before or after Redis has done what they ask."""

    def __init__(self, redis: AsyncRedis) -> None:
        self.redis = redis
        self.failures: list[str] = []
        self.exchanges = 0

    def pipeline(self, **how: Any) -> Any:
        pipeline: Any = self.redis.pipeline(**how)
        execute = pipeline.execute

        async def fail(**rest: Any) -> Any:
            self.exchanges += 1
            failure = self.failures.pop() if self.failures else ""
            if failure == "before":
                raise RedisConnectionError(failure)
            if failure == "no memory":
                return [ResponseError("OOM command not allowed") for _ in pipeline.command_stack]
            answers = await execute(**rest)
            if failure == "after":
                raise RedisConnectionError(failure)
            return answers

        pipeline.execute = fail
        return pipeline

    async def aclose(self) -> None:
        await self.redis.aclose()


class Reader:
    """Keeps what it was told, as a program would that shows the text."""

    def __init__(self, streams: TextStreams, job_id: UUID) -> None:
        self.streams = streams
        self.job_id = job_id
        self.position = "0"
        self.text = ""
        self.restarts = 0
        self.ends = 0

    def hear(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            self.position = piece.position
            if piece.kind == "text":
                assert piece.text
                self.text += piece.text
            elif piece.kind == "restart":
                self.restarts += 1
                self.text = ""
            else:
                self.ends += 1

    def read(self) -> None:
        self.hear(self.streams.read({self.job_id: self.position}).get(self.job_id, []))

    def read_rest(self, text: str, attempt: int) -> None:
        self.hear(self.streams.rest(self.job_id, self.position, text, attempt))


@pytest.fixture(scope="module")
def redis_url(servers: ServerUrls) -> str:
    return servers.redis_url.replace("db=0", "db=15")


@pytest.fixture(scope="module")
def redis(redis_url: str) -> Iterator[Redis]:
    with open_redis(redis_url) as redis:
        yield redis


class World:
    """A writer for each worker, and readers."""

    def __init__(self, redis_url: str, redis: Redis, bounds: StreamBounds) -> None:
        self.redis = redis
        self.client = FailingRedis(open_async_redis(redis_url, 1))
        self.writer = TextStreamWriter(
            self.client,  # type: ignore[arg-type]
            bounds,
            join_seconds=0.0,
            rest_seconds=0.0,
        )
        self.streams = TextStreams(redis)
        self.job_id = uuid4()

    def reader(self) -> Reader:
        return Reader(self.streams, self.job_id)

    def open(self, attempt: int = 1) -> TextStream:
        return self.writer.open(self.job_id, attempt)

    def entries(self) -> list[Any]:
        found: Any = self.redis.xrange(TEXT_KEY.format(id=self.job_id))
        return list(found)

    async def write(self, stream: TextStream, *pieces: str) -> None:
        for piece in pieces:
            stream.write(piece)
            await self.writer.flush()


Play = Callable[[World], Coroutine[Any, Any, None]]


@pytest.fixture
def play(redis_url: str, redis: Redis) -> Callable[..., None]:
    def run(act: Play, bounds: StreamBounds = WIDE) -> None:
        async def main() -> None:
            world = World(redis_url, redis, bounds)
            try:
                await act(world)
            finally:
                await world.writer.aclose()

        asyncio.run(main())

    return run


def test_a_text_comes_piece_by_piece_and_ends(play: Callable[..., None]) -> None:
    async def act(world: World) -> None:
        reader, late = world.reader(), world.reader()
        stream = world.open()
        for piece in ("Say ", "hel", "lo"):
            await world.write(stream, piece)
            before = reader.text
            reader.read()
            assert reader.text == before + piece
        stream.end()
        await world.writer.flush()
        reader.read()
        late.read()
        for one in (reader, late):
            assert (one.text, one.restarts, one.ends) == ("Say hello", 0, 1)
            one.read()
            one.read_rest("Say hello", 1)
            assert (one.text, one.restarts, one.ends) == ("Say hello", 0, 1)
        assert 0 < int(world.redis.ttl(TEXT_KEY.format(id=world.job_id))) <= WIDE.ttl_seconds

    play(act)


def test_pieces_of_a_moment_are_joined_and_texts_of_many_jobs_are_one_exchange(
    play: Callable[..., None],
) -> None:
    async def act(world: World) -> None:
        streams = [world.writer.open(uuid4(), 1) for _ in range(50)]
        for number in range(100):
            for stream in streams:
                stream.write(f"{number} ")
        await world.writer.flush()
        assert world.client.exchanges == 1

    play(act)


def test_a_retry_begins_again_and_the_worker_before_it_is_fenced_off(
    play: Callable[..., None],
) -> None:
    async def act(world: World) -> None:
        reader, old = world.reader(), world.open(1)
        await world.write(old, "The old ", "text")
        reader.read()
        new = world.open(2)
        await world.writer.flush()
        await world.write(old, " goes on")
        reader.read()
        assert (reader.text, reader.restarts) == ("", 1)  # before the new text comes
        await world.write(new, "The new", " text")
        old.end()
        await world.writer.flush()
        new.end()
        await world.writer.flush()
        for one in (reader, world.reader()):
            one.read()
            assert (one.text, one.ends) == ("The new text", 1)
        assert "old" not in str(world.entries())

    play(act)


def test_another_provider_begins_the_text_again(play: Callable[..., None]) -> None:
    async def act(world: World) -> None:
        reader, stream = world.reader(), world.open()
        stream.begin("nothing was written yet")
        await world.write(stream, "Half of")
        reader.read()
        stream.begin("the connection broke; another provider is asked")
        await world.writer.flush()
        pieces = world.streams.read({world.job_id: reader.position})[world.job_id]
        reader.hear(pieces)
        assert [(one.kind, one.attempt, one.reason) for one in pieces] == [
            ("restart", 1, "the connection broke; another provider is asked")
        ]
        await world.write(stream, "All")
        reader.read()
        assert (reader.text, reader.restarts) == ("All", 1)

    play(act)


def test_a_reader_behind_the_bound_is_told_so_and_gets_the_whole_text_at_the_end(
    play: Callable[..., None],
) -> None:
    async def act(world: World) -> None:
        quick, slow, late = world.reader(), world.reader(), world.reader()
        stream, text = world.open(), ""
        for number in range(12):
            piece = f"piece {number}, "
            text += piece
            await world.write(stream, piece)
            assert len(world.entries()) <= NARROW.most_pieces
            assert sum(len(fields["text"]) for _, fields in world.entries()) <= NARROW.most_bytes
            quick.read()
            if not number:
                slow.read()
        for one in (slow, late):
            one.read()
            assert (one.text, one.restarts) == ("", 1)
        stream.end()
        await world.writer.flush()
        for one in (quick, slow, late):
            one.read()
            one.read_rest(text, 1)
            assert one.text == text
        assert (quick.restarts, quick.ends) == (0, 1)

    play(act, NARROW)


def test_a_long_piece_is_cut(play: Callable[..., None]) -> None:
    async def act(world: World) -> None:
        reader, stream, text = world.reader(), world.open(), "é" * 100_000
        stream.write(text)
        await world.writer.flush()
        assert len(world.entries()) > 1
        reader.read()
        assert (reader.text, reader.restarts) == (text, 0)

    play(act)


def test_an_answer_that_differs_from_what_was_shown_is_shown_whole(
    play: Callable[..., None],
) -> None:
    async def act(world: World) -> None:
        reader, stream = world.reader(), world.open()
        await world.write(stream, "{")
        reader.read()
        stream.correct('{"a": 1}')
        stream.end()
        await world.writer.flush()
        reader.read()
        assert (reader.text, reader.restarts, reader.ends) == ('{"a": 1}', 1, 1)

    play(act)


def test_an_attempt_without_a_text_takes_back_the_text_before_it(
    play: Callable[..., None],
) -> None:
    async def act(world: World) -> None:
        reader, late = world.reader(), world.reader()
        await world.write(world.open(1), "never mind")
        reader.read()
        world.open(2).end()
        await world.writer.flush()
        for one in (reader, late):
            one.read()
            one.read_rest("", 2)
            assert (one.text, one.ends) == ("", 1)

    play(act)


def test_a_reader_waits_for_the_first_piece(redis_url: str, play: Callable[..., None]) -> None:
    async def act(world: World) -> None:
        client = open_async_redis(redis_url)
        streams = TextStreams(world.redis, client)
        other = uuid4()
        positions = {world.job_id: "0", other: "0"}
        assert await streams.aread(positions, 0.05) == {}
        waiting = asyncio.create_task(streams.aread(positions, 60))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(streams.aread(positions, 60))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await world.write(world.open(), "here")
        found = await waiting
        assert [(one.kind, one.text) for one in found.pop(world.job_id)] == [("text", "here")]
        assert found == {}
        await client.aclose()

    play(act)


def test_each_outage_is_told_once(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        "promptstack.services.streams.reader.CircuitBreaker", partial(CircuitBreaker, 0.0)
    )
    streams = TextStreams(redis)

    def refuse(**_: object) -> None:
        raise RedisConnectionError("away")

    def read() -> None:
        assert streams.read({uuid4(): "0"}) == {}

    for outages in (1, 2):
        with monkeypatch.context() as away:
            away.setattr(redis, "xread", refuse)
            read()
            read()
        read()
        assert caplog.text.count("Redis is away") == outages


@pytest.mark.parametrize("position", ["", "x", "-", "1-2-3", "٣-1", "1-" + "9" * 30, f"{2**64}-0"])
def test_a_position_that_nobody_was_told_is_refused(redis: Redis, position: str) -> None:
    with pytest.raises(InvalidInput, match="position"):
        TextStreams(redis).read({uuid4(): position})


def test_without_redis_a_reader_gets_the_text_from_the_ledger() -> None:
    streams = TextStreams(open_redis("redis://127.0.0.1:1/0"))
    job_id = uuid4()
    assert streams.read({job_id: "0"}, 0.01) == {}
    told = streams.rest(job_id, "0", "all of it", 1)
    assert [(one.kind, one.text) for one in told] == [("text", "all of it"), ("end", "")]
    assert streams.rest(job_id, told[-1].position, "all of it", 1) == []
    assert [one.kind for one in streams.rest(job_id, told[0].position, "all of it", 1)] == ["end"]
    told = streams.rest(job_id, "65536-5", "all of it", 1)
    assert [one.kind for one in told] == ["restart", "text", "end"]
    assert told[1].text == "all of it"


@pytest.mark.parametrize("failure", ["lost", "before", "after", "no memory"])
def test_what_redis_lost_is_shown_again_before_the_end(
    play: Callable[..., None], failure: str
) -> None:
    async def act(world: World) -> None:
        reader, stream = world.reader(), world.open()
        await world.write(stream, "one ", "two ")
        reader.read()
        if failure == "lost":
            world.redis.delete(TEXT_KEY.format(id=world.job_id))
        else:
            world.client.failures = [failure]
        await world.write(stream, "three ")
        reader.read()
        assert (reader.text, reader.restarts) == ("one two three ", 1)
        await world.write(stream, "four")
        stream.end()
        await world.writer.flush()
        reader.read()
        assert (reader.text, reader.restarts, reader.ends) == ("one two three four", 1, 1)

    play(act)


def test_redis_without_memory_is_left_alone_for_a_moment(play: Callable[..., None]) -> None:
    async def act(world: World) -> None:
        world.client.failures = ["no memory"] * 1_000
        patient = TextStreamWriter(
            world.client,  # type: ignore[arg-type]
            WIDE,
            join_seconds=0.0,
            rest_seconds=60.0,
        )
        patient.open(world.job_id, 1).write("text")
        while not world.client.exchanges:  # noqa: ASYNC110 - the writer's own task counts them
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert world.client.exchanges == 1

    play(act)


class AnyStream(RuleBasedStateMachine):
    """A text with its workers and readers, of which anything may fail at any time."""

    url: ClassVar[str]
    redis: ClassVar[Redis]
    bounds: ClassVar[StreamBounds]

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.world = World(self.url, self.redis, self.bounds)
        self.do(self._open(1))
        self.text = ""
        self.old: TextStream | None = None
        self.readers = [self.world.reader()]

    async def _open(self, attempt: int) -> None:
        self.attempt = attempt
        self.stream = self.world.open(attempt)

    def do(self, work: Coroutine[Any, Any, Any]) -> None:
        self.runner.run(work)

    @rule(piece=st.text("ab\u00e9\U0001f600", min_size=1, max_size=15))
    def write(self, piece: str) -> None:
        async def write() -> None:
            self.stream.write(piece)

        self.text += piece
        self.do(write())

    @rule(piece=st.text("ab\u00e9\U0001f600", min_size=1, max_size=15))
    def write_and_look(self, piece: str) -> None:
        """The next piece mends what was lost before it, while the job goes on."""
        self.text += piece
        self.do(self.world.write(self.stream, piece))
        for reader in self.readers:
            reader.read()
            assert reader.text == self.text or self.bounds is NARROW

    @rule()
    def begin_again(self) -> None:
        async def begin() -> None:
            self.stream.begin("another provider is asked")

        self.text = ""
        self.do(begin())

    @rule()
    def another_worker_claims(self) -> None:
        self.old, self.text = self.stream, ""
        self.do(self._open(self.attempt + 1))
        self.do(self.world.writer.flush())

    @precondition(lambda self: self.old is not None)
    @rule()
    def the_old_worker_writes(self) -> None:
        assert self.old is not None
        self.do(self.world.write(self.old, "OLD"))
        for reader in self.readers:
            reader.read()
            assert "OLD" not in reader.text

    @rule(number=st.integers(0, 9))
    def a_reader_reads(self, number: int) -> None:
        self.readers[number % len(self.readers)].read()

    @rule(number=st.integers(0, 9))
    def a_reader_returns_to_where_it_was(self, number: int) -> None:
        reader = self.world.reader()
        vars(reader).update(vars(self.readers[number % len(self.readers)]))
        self.readers.append(reader)

    @rule()
    def a_reader_joins(self) -> None:
        self.readers.append(self.world.reader())

    @rule()
    def redis_loses_the_text(self) -> None:
        # An old worker can't know any more that it is old, so it is of no use here.
        self.old = None
        self.world.redis.delete(TEXT_KEY.format(id=self.world.job_id))

    @rule(failures=st.lists(st.sampled_from(["before", "after", "no memory"]), max_size=2))
    def redis_fails(self, failures: list[str]) -> None:
        self.world.client.failures = failures

    def teardown(self) -> None:
        async def end() -> None:
            self.stream.correct(self.text)
            self.stream.end()
            await self.world.writer.flush()

        self.do(end())
        for reader in [*self.readers, self.world.reader()]:
            reader.read()
            reader.read_rest(self.text, self.attempt)
            assert reader.text == self.text
            assert reader.ends
            reader.read_rest(self.text, self.attempt)
            assert reader.text == self.text
        self.do(self.world.writer.aclose())
        self.runner.close()


@pytest.mark.parametrize("bounds", [WIDE, NARROW], ids=["wide", "narrow"])
def test_whatever_happens_each_reader_has_the_whole_text_in_the_end(
    redis_url: str, redis: Redis, bounds: StreamBounds
) -> None:
    machine = type("Machine", (AnyStream,), {"url": redis_url, "redis": redis, "bounds": bounds})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=30, deadline=None)
    )
