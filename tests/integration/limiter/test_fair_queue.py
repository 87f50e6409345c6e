"""Users take turns at the limiter's queue: its real script in a real Valkey, in made-up time."""

import random
from collections import Counter
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis

from promptstack.config.models_file import ModelLimits
from promptstack.config.setting_types import TierWeights
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.access_models import Tier
from promptstack.services.limiter.terms import Grant, Later, Need, Wait
from tests.limiter_world import BUCKET, Clocked, Job, MadeUpProvider, Script, World, run_world, talk

LIMITER_DATABASE = 15
ONE, OTHER = UUID(int=1), UUID(int=2)
LIMITS = ModelLimits(provider="made-up", requests_per_minute=600)
EACH = 0.1
"""Seconds from one call to the next under these limits."""


@pytest.fixture
def url(servers: ServerUrls) -> str:
    url = servers.redis_url.replace("db=0", f"db={LIMITER_DATABASE}")
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


class Line:
    """Calls of users that wait at the script, asked in no particular order."""

    def __init__(self, script: Script, seed: int = 0) -> None:
        self._script = script
        self._random = random.Random(seed)
        self._waiting: dict[str, Need] = {}
        self.served: list[UUID | None] = []

    async def join(self, need: Need, count: int = 1) -> None:
        for _ in range(count):
            name = f"call-{self._script.count}"
            if await self._is_served(name, need):
                self.served.append(need.user_id)
            else:
                self._waiting[name] = need

    async def leave(self, user_id: UUID) -> None:
        """All of a user's calls give up."""
        for name in [name for name, need in self._waiting.items() if need.user_id == user_id]:
            need = self._waiting.pop(name)
            script = self._script
            await script.clocked.buckets.leave(BUCKET, script.limits, name, need)

    async def serve(self, calls: int) -> None:
        """Let time pass until so many more have left."""
        most = len(self.served) + calls
        while len(self.served) < most and self._waiting:
            await self._script.at(self._script.now + EACH)
            names = list(self._waiting)
            self._random.shuffle(names)
            for name in names:
                if await self._is_served(name, self._waiting[name]):
                    self.served.append(self._waiting.pop(name).user_id)

    async def _is_served(self, name: str, need: Need) -> bool:
        verdict = await self._script.ask(need, name=name, patience=1_000.0)
        assert isinstance(verdict, Grant | Wait), verdict
        return isinstance(verdict, Grant)


@pytest.mark.parametrize("is_bulk", [False, True], ids=["interactive", "bulk"])
def test_a_users_many_calls_do_not_stand_before_anothers_one(url: str, is_bulk: bool) -> None:
    async def work(script: Script) -> list[UUID | None]:
        line = Line(script)
        await line.join(Need(10, 10, is_bulk, ONE), 100)
        await line.serve(5)
        await line.join(Need(10, 10, is_bulk, OTHER))
        await line.serve(3)
        return line.served

    served = talk(url, work, requests_per_minute=600)
    assert OTHER in served[-3:]


def test_a_users_own_calls_go_in_the_order_they_came(url: str) -> None:
    async def work(script: Script) -> list[float]:
        await script.grant()
        return [
            verdict.seconds
            for _ in range(20)
            for verdict in [await script.ask(Need(10, 10, user_id=ONE), patience=10.0)]
            if isinstance(verdict, Wait)
        ]

    waits = talk(url, work, requests_per_minute=600)
    assert len(waits) == 20
    assert waits == sorted(waits)


def test_calls_without_a_user_are_those_of_one_user(url: str) -> None:
    async def work(script: Script) -> Counter[UUID | None]:
        line = Line(script)
        await line.join(Need(10, 10), 30)
        await line.join(Need(10, 10, user_id=ONE), 30)
        await line.serve(30)
        return Counter(line.served)

    assert abs(talk(url, work, requests_per_minute=600)[None] - 15) <= 2


def test_who_was_idle_has_saved_up_no_turns(url: str) -> None:
    async def work(script: Script) -> Counter[UUID | None]:
        line = Line(script)
        await line.join(Need(10, 10, user_id=OTHER))
        await line.join(Need(10, 10, user_id=ONE), 60)
        await line.serve(30)  # the other could have had half of these
        await line.join(Need(10, 10, user_id=OTHER), 30)
        before = Counter(line.served)
        await line.serve(20)
        return Counter(line.served) - before

    assert abs(talk(url, work, requests_per_minute=600)[OTHER] - 10) <= 2


def test_who_gives_up_waiting_does_not_lose_turns(url: str) -> None:
    async def work(script: Script) -> Counter[UUID | None]:
        line = Line(script)
        await line.join(Need(10, 10, user_id=ONE), 60)
        await line.join(Need(10, 10, user_id=OTHER), 60)
        await line.leave(OTHER)
        await line.join(Need(10, 10, user_id=OTHER), 30)
        before = Counter(line.served)
        await line.serve(20)
        return Counter(line.served) - before

    assert abs(talk(url, work, requests_per_minute=600)[OTHER] - 10) <= 2


def test_a_users_calls_that_are_sent_away_do_not_put_off_anothers(url: str) -> None:
    async def work(script: Script) -> list[float]:
        for _ in range(100):
            assert isinstance(
                await script.ask(Need(10, 10, True, ONE), patience=0.0), Grant | Later
            )
        verdicts = [await script.ask(Need(10, 10, True, OTHER), patience=0.0) for _ in range(2)]
        return [verdict.seconds for verdict in verdicts if isinstance(verdict, Later)]

    assert max(talk(url, work, requests_per_minute=600)) < 1.0  # and not after 10 s


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    users=st.lists(st.sampled_from(Tier), min_size=2, max_size=4),
    joins=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=4),
    seed=st.integers(0, 1_000),
)
def test_of_users_who_wait_each_is_served_by_weight(
    url: str, users: list[Tier], joins: list[tuple[int, int]], seed: int
) -> None:
    """In whatever order calls come: the bound of start-time fair queueing, one call a user.

    All have waiting calls all the time; `joins` are more calls that come in between.
    """

    async def work(script: Script) -> list[UUID | None]:
        line = Line(script, seed)
        needs = [
            Need(10, 10, True, UUID(int=number + 1), tier) for number, tier in enumerate(users)
        ]
        for need in needs:
            await line.join(need, 25)
        before = len(line.served)
        for user, served in joins:
            await line.join(needs[user % len(needs)], 2)
            await line.serve(served)
        await line.serve(12)
        return line.served[before:]

    with Redis.from_url(url) as redis:
        redis.flushdb()
    served = talk(url, work, requests_per_minute=600)
    of_tier = TierWeights()
    weights = {UUID(int=number + 1): of_tier.of(tier) for number, tier in enumerate(users)}
    for end in range(1, len(served) + 1):
        counts = Counter(served[:end])
        shares = {user: counts[user] / weight for user, weight in weights.items()}
        for one, weight in weights.items():
            for other, others_weight in weights.items():
                # One call more for the grant before the line was watched.
                assert shares[one] - shares[other] <= 2 / weight + 1 / others_weight + 1e-6


def test_a_user_of_few_calls_has_half_of_the_limit_beside_one_of_many(url: str) -> None:
    """Fifty calls under way at once against eight, with workers that take time."""
    many = [Job(n, is_bulk=True, user_id=ONE) for n in range(600)]
    few = [Job(1_000 + n, is_bulk=True, user_id=OTHER) for n in range(100)]
    limits = ModelLimits(provider="made-up", requests_per_minute=1_200)
    world = World(Clocked(url), MadeUpProvider(1_200), many + few, settings=limits, slots=700)
    run_world(world)
    end = max(job.done_at or 0.0 for job in few)
    done = sum(1 for job in many if (job.done_at or 0.0) <= end)
    assert 0.4 <= len(few) / (len(few) + done) <= 0.6
