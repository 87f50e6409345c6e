"""Questions to the limiter that go together, and reports that nobody waits for."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from promptstack.config.models_file import ModelLimits
from promptstack.embedded.servers import ServerUrls
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.scripts import ScriptCalls
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import Bucket, Grant, Need, Settlement
from promptstack.services.llm.answers import LimitReport, LimitState, LLMResponse, Outcome
from promptstack.services.llm.errors import RateLimited
from tests.limiter_world import BUCKET, Clocked

NEED = Need(100, 100)
LIMITER_DATABASE = 15
ANSWER = LLMResponse("Blue.", "model", 100, 100, "stop")
FLIGHT = "promptstack:limiter:{made-up:key}:model:flight"


@pytest.fixture
def url(servers: ServerUrls) -> str:
    url = servers.redis_url.replace("db=0", f"db={LIMITER_DATABASE}")
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


def limiter(redis: Any, **limits: Any) -> RateLimiter:
    """A limiter on Redis's own clock."""
    return RateLimiter(
        SharedBuckets(redis),
        DividedBuckets(lambda: 1),
        [ModelLimits(provider="made-up", **limits)],
        patience_seconds=5.0,
        lease_seconds=20.0,
    )


# Together is as one by one


@dataclass(frozen=True)
class Ask:
    """A call asks to be let go."""

    need: Need
    patience: float


@dataclass(frozen=True)
class End:
    """A call that was let go in a group before has ended."""

    which: int
    settlement: Settlement


reports = st.none() | st.builds(
    lambda limit, left: LimitReport({"requests": LimitState(limit, min(limit, left))}),
    st.integers(1, 6_000),
    st.integers(0, 6_000),
)
asks = st.builds(
    Ask,
    st.builds(Need, st.integers(0, 2_000), st.integers(0, 2_000), st.booleans()),
    st.sampled_from([0.0, 1.0, 60.0]),
)
ends = st.builds(
    End,
    st.integers(0, 20),
    st.builds(
        Settlement,
        st.sampled_from(Outcome),
        st.sampled_from([0.1, 2.0]),
        st.none() | st.sampled_from([0.5, 10.0]),
        st.none() | st.integers(0, 2_000),
        st.none() | st.integers(0, 2_000),
        reports,
    ),
)
groups = st.lists(
    st.tuples(st.sampled_from([0.0, 0.01, 0.5, 5.0, 70.0]), st.lists(asks | ends, max_size=8)),
    min_size=1,
    max_size=8,
)
limits = st.builds(
    lambda **given: ModelLimits(provider="made-up", **given),
    requests_per_minute=st.none() | st.sampled_from([30, 600]),
    tokens_per_minute=st.none() | st.sampled_from([5_000, 100_000]),
    in_flight=st.none() | st.sampled_from([1, 4]),
)


async def told(
    url: str, limits: ModelLimits, story: list[tuple[float, list[Ask | End]]], *, together: bool
) -> tuple[list[Any], dict[str, float], list[tuple[str, float]]]:
    """What was answered, and what the script knows and holds in the end."""
    clocked, now, answers = Clocked(url), 0.0, list[Any]()
    grants: list[tuple[Need, Grant]] = []

    async def one(number: int, step: Ask | End, held: list[tuple[Need, Grant]]) -> Any:
        if isinstance(step, End):
            if not held:
                return None
            need, grant = held[step.which % len(held)]
            return await clocked.buckets.settle(BUCKET, limits, grant, need, step.settlement)
        verdict = await clocked.buckets.ask(
            BUCKET, limits, f"w{number}", step.need,
            patience=step.patience, lease=60.0, longest_sleep=0.5,
        )  # fmt: skip
        if isinstance(verdict, Grant):
            grants.append((step.need, verdict))
            return json.loads(verdict.charge), vars(verdict.limits)
        return vars(verdict) | {"kind": type(verdict).__name__}

    try:
        for passed, steps in story:
            now += passed
            await clocked.set(now)
            calls = [one(len(answers) + at, step, list(grants)) for at, step in enumerate(steps)]
            if together:
                answers += await asyncio.gather(*calls)
            else:
                answers += [await call for call in calls]
        redis: Any = clocked.buckets._redis
        held = await redis.zrange(FLIGHT, 0, -1, withscores=True)
        return answers, await clocked.state(), held
    finally:
        await clocked.aclose()


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(limits, groups)
def test_questions_that_go_together_are_answered_as_one_by_one(
    url: str, limits: ModelLimits, story: list[tuple[float, list[Ask | End]]]
) -> None:
    found = []
    for together in (False, True):
        with Redis.from_url(url) as redis:
            redis.flushdb()
        found.append(asyncio.run(told(url, limits, story, together=together)))
    one_by_one, at_once = found
    # In Redis a number has six digits behind the point; within a call of the script it has all.
    assert at_once == _rounded(one_by_one)


def _rounded(value: Any) -> Any:
    match value:
        case float():
            return pytest.approx(value, abs=1e-2, rel=1e-4)
        case dict():
            return {name: _rounded(each) for name, each in value.items()}
        case list() | tuple():
            return type(value)(_rounded(each) for each in value)
        case _:
            return value


def test_questions_of_one_turn_are_one_call_of_the_script(url: str) -> None:
    async def run() -> dict[str, int]:
        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        one = limiter(redis, requests_per_minute=10**9)
        await one.settle(await one.acquire(BUCKET, NEED), Settlement(Outcome.ANSWERED, 0.1))
        before = await _commands(redis)
        permits = await asyncio.gather(*(one.acquire(BUCKET, NEED) for _ in range(50)))
        await asyncio.gather(*(one.settle(it, Settlement(Outcome.ANSWERED)) for it in permits))
        after = await _commands(redis)
        await one.aclose()
        return {name: count - before.get(name, 0) for name, count in after.items()}

    ran = asyncio.run(run())
    assert ran["evalsha"] == 2
    # Of one call: it is put into the set of calls under way, and taken out.
    assert ran["zadd"] == ran["zrem"] == 50
    others = {"evalsha", "zadd", "zrem", "info", "config|resetstat"}
    assert all(count <= 4 for name, count in ran.items() if name not in others), ran


async def _commands(redis: Any) -> dict[str, int]:
    stats = await redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): its["calls"] for name, its in stats.items()}


# Nobody waits for a report


def test_an_answer_does_not_wait_until_redis_knows_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        may_go_on, exchange, exchanges = asyncio.Event(), ScriptCalls._exchange, 0

        async def held_up(self: ScriptCalls, calls: Any) -> list[Any]:
            nonlocal exchanges
            exchanges += 1
            await may_go_on.wait()
            return await exchange(self, calls)

        async def answer() -> LLMResponse:
            monkeypatch.setattr(ScriptCalls, "_exchange", held_up)
            return ANSWER

        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        one = limiter(redis, in_flight=1)
        calls = LimitedCalls(one, timeout_seconds=30.0)
        permit = await one.acquire(BUCKET, NEED)
        assert await asyncio.wait_for(calls.make("made-up", permit, answer), 30.0) is ANSWER
        next_call = asyncio.create_task(one.acquire(BUCKET, NEED))
        await asyncio.sleep(0)
        may_go_on.set()
        await asyncio.wait_for(next_call, 30.0)
        assert exchanges == 1, "what was reported goes with the next question, and before it"
        await one.aclose()

    asyncio.run(run())


def test_a_report_leaves_by_itself_and_at_the_latest_at_the_end(url: str) -> None:
    async def run(*, ends: bool) -> None:
        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        one = limiter(redis, in_flight=8)
        calls = LimitedCalls(one, timeout_seconds=30.0)
        await calls.give_back(await one.acquire(BUCKET, NEED))
        if not ends:
            async with asyncio.timeout(30.0):
                while await redis.zcard(FLIGHT):  # noqa: ASYNC110 - Redis tells nobody
                    await asyncio.sleep(0.005)
        await one.aclose()

    for ends in (False, True):
        asyncio.run(run(ends=ends))
        with Redis.from_url(url) as redis:
            assert redis.zcard(FLIGHT) == 0


def test_a_pause_that_a_call_reports_holds_for_the_next_question(url: str) -> None:
    async def slow_down() -> LLMResponse:
        raise RateLimited("Slow down.", retry_after=4.0)

    async def run() -> float:
        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        one = limiter(redis, requests_per_minute=60_000)
        calls = LimitedCalls(one, timeout_seconds=30.0)
        with pytest.raises(RateLimited):
            await calls.make("made-up", await one.acquire(BUCKET, NEED), slow_down)
        permit = await one.acquire(BUCKET, NEED)
        await one.aclose()
        return permit.waited_seconds

    assert asyncio.run(run()) > 3.0


def test_reports_that_redis_cannot_take_raise_nothing(url: str) -> None:
    async def run() -> Bucket:
        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        one = limiter(redis, in_flight=8)
        permit = await one.acquire(BUCKET, NEED)
        await redis.connection_pool.disconnect()
        redis.connection_pool.connection_kwargs["path"] = "/nowhere/redis.sock"
        one.report(permit, Settlement(Outcome.ANSWERED))
        await asyncio.wait_for(one.aclose(), 30.0)
        return permit.bucket

    assert asyncio.run(run()) == BUCKET
