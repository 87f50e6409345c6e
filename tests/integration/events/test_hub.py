"""One reader for all who watch: how often it asks, for how many, and what an outage costs."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.services.events.errors import TooManyWatchers, WatchersFull
from promptstack.services.events.hub import EventHub
from promptstack.services.events.places import Event, Look
from promptstack.services.events.texts import TextFeed
from promptstack.services.events.watcher import Watcher
from tests.jobs import NO_REDIS

ADA = UUID(int=1)
BOB = UUID(int=2)


class Board:
    """What can be watched, as the hub is told."""

    def __init__(self) -> None:
        self.steps: dict[UUID, int] = {}
        self.ended: set[UUID] = set()
        self.gone: set[UUID] = set()
        self.asked: list[int] = []
        self.threads: set[int] = set()
        self.error: Exception | None = None

    def channel(self, one: UUID) -> str:
        return str(one)

    def has_text(self, one: UUID) -> bool:
        return False

    def look(self, ids: Sequence[UUID], only_end: Collection[UUID] = ()) -> Mapping[UUID, Look]:
        self.asked.append(len(ids))
        self.threads.add(threading.get_ident())
        if self.error is not None:
            raise self.error
        return {one: self._look(one) for one in ids if one not in self.gone}

    def _look(self, one: UUID) -> Look:
        is_final = one in self.ended
        return Look("state", str(self.steps.get(one, 0)), "done" if is_final else "on", is_final)

    def says_end(self, state: str) -> bool:
        return state == "done"

    def ends(self, ids: Sequence[UUID]) -> Mapping[UUID, Look]:
        self.threads.add(threading.get_ident())
        return {one: Look("end", f"end {one}", "done", True) for one in ids if one in self.ended}

    def forget(self, one: UUID) -> None:
        self.steps.pop(one, None)


class World:
    """A hub over a board, without Redis."""

    def __init__(self, most: int = 5_000, most_of_user: int = 5_000) -> None:
        self.board = Board()
        self.hub = EventHub(
            self.board,
            Board(),
            TextFeed(SyncRedis.from_url(NO_REDIS), lambda: Redis.from_url(NO_REDIS)),
            lambda: Redis.from_url(NO_REDIS),
            max_watchers=most,
            max_watchers_of_user=most_of_user,
        )
        self.tasks: list[asyncio.Task[list[Event]]] = []

    def watch(self, one: UUID, user: UUID = ADA) -> "asyncio.Task[list[Event]]":
        async def read() -> list[Event]:
            with self.hub.watch(self.board, one, user) as watcher:
                return [event async for event in watcher]

        self.tasks.append(asyncio.create_task(read()))
        return self.tasks[-1]

    def run(self, scene: "Callable[[World], AsyncIterator[None] | object]") -> None:
        async def play() -> None:
            try:
                async with asyncio.timeout(60):
                    await scene(self)  # type: ignore[misc]
            finally:
                self.hub.close()
                await asyncio.gather(*self.tasks, return_exceptions=True)

        asyncio.run(play())


@asynccontextmanager
async def watching(world: World, one: UUID) -> AsyncIterator[Watcher]:
    with world.hub.watch(world.board, one, ADA) as watcher:
        yield watcher


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - another thread makes it true
            await asyncio.sleep(0.01)


def test_a_thousand_are_watched_by_one_question_in_one_thread() -> None:
    async def scene(world: World) -> None:
        ones = [uuid4() for _ in range(1_000)]
        before = threading.active_count()
        watching = [world.watch(one) for one in ones]
        await until(lambda: 1_000 in world.board.asked)
        assert threading.active_count() <= before + 2
        world.board.ended.update(ones)
        seen = await asyncio.gather(*watching)
        assert [events[-1].data for events in seen] == [f"end {one}" for one in ones]

    world = World()
    world.run(scene)
    assert len(world.board.asked) < 100
    assert len(world.board.threads) == 1


def test_a_thousand_who_watch_one_thing_cost_one_look() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        watching = [world.watch(one) for _ in range(1_000)]
        await until(lambda: world.board.asked)
        world.board.ended.add(one)
        assert {events[-1].kind for events in await asyncio.gather(*watching)} == {"end"}

    world = World()
    world.run(scene)
    assert set(world.board.asked) == {1}


def test_who_reads_slowly_gets_the_newest_state_and_the_end() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        async with watching(world, one) as slow, watching(world, one) as quick:
            first = await anext(slow)
            for step in range(1, 5):
                world.board.steps[one] = step
                while (await anext(quick)).data != str(step):
                    pass
            newest = await anext(slow)
            world.board.ended.add(one)
            async for _ in quick:
                pass
            rest = [event.data async for event in slow]
        assert (first.data, newest.data, rest) == ("0", "4", [f"end {one}"])

    World().run(scene)


def test_who_comes_later_shares_the_end_with_those_who_still_read_it() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        world.board.ended.add(one)
        async with watching(world, one) as slow:
            await until(lambda: slow.end)
            async with watching(world, one) as later:
                await until(lambda: later.end)
                assert later.end is slow.end

    World().run(scene)


def test_so_many_may_watch_and_a_place_is_free_again() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        first = [world.watch(one), world.watch(one)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyWatchers):
            await world.watch(one)
        world.watch(one, BOB)
        await asyncio.sleep(0)
        with pytest.raises(WatchersFull):
            await world.watch(one, UUID(int=3))
        first[0].cancel()
        await asyncio.gather(first[0], return_exceptions=True)
        late = world.watch(one, BOB)
        world.board.ended.add(one)
        assert (await late)[-1].kind == "end"

    World(most=3, most_of_user=2).run(scene)


@pytest.mark.parametrize("error", [LedgerUnavailable("away"), ZeroDivisionError()], ids=repr)
def test_an_outage_ends_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        world.board.error = error
        watching = world.watch(one)
        await until(lambda: len(world.board.asked) >= 2)
        world.board.error = None
        world.board.ended.add(one)
        assert [event.kind for event in await watching] == ["end"]

    with caplog.at_level(logging.WARNING):
        World().run(scene)
    assert "watchers hear nothing now" in caplog.text


def test_what_is_deleted_ends_without_an_end() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        async with watching(world, one) as watcher:
            assert (await anext(watcher)).kind == "state"
            world.board.gone.add(one)
            assert [event async for event in watcher] == []

    World().run(scene)


def test_a_hub_that_is_closed_ends_all_and_watches_no_more() -> None:
    async def scene(world: World) -> None:
        one = uuid4()
        watching = world.watch(one)
        await until(lambda: world.board.asked)
        world.hub.close()
        assert [event.kind for event in await watching] == ["state"]
        assert await world.watch(one) == []

    World().run(scene)
