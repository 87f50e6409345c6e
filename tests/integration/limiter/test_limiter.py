"""The limiter: its real script in a real Valkey, in a world whose time is made up.

What the same limiter does with real workers in real time is measured by benchmarks/limiter.py.
"""

import asyncio
import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from promptstack.config.models_file import ModelLimits
from promptstack.embedded.servers import ServerUrls
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import (
    Closed,
    Grant,
    Later,
    Need,
    Settlement,
    Spent,
    TooLarge,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import LimitReport, LimitState, Outcome
from tests.limiter_world import (
    BUCKET,
    NEED,
    Clocked,
    Job,
    MadeUpProvider,
    Script,
    World,
    run_world,
    talk,
)

ROOM = LimitReport({"requests": LimitState(6_000, 5_000)})
NO_ROOM = LimitReport({"requests": LimitState(6_000, 0)})
LIMITER_DATABASE = 15


@pytest.fixture
def url(servers: ServerUrls) -> str:
    url = servers.redis_url.replace("db=0", f"db={LIMITER_DATABASE}")
    with Redis.from_url(url) as redis:
        redis.flushdb()
    return url


def is_probe(grant: Grant) -> bool:
    """Whether the call tries a circuit that was open."""
    return bool(json.loads(grant.charge)["is_probe"])


def jobs(count: int, **each: object) -> list[Job]:
    return [Job(number, **each) for number in range(count)]  # type: ignore[arg-type]


def whole_seconds(wait: float) -> float:
    return float(math.ceil(wait))


def limits(**given: float) -> ModelLimits:
    return ModelLimits.model_validate({"provider": "made-up", **given})


def all_done(world: World) -> bool:
    return all(job.done_at is not None for job in world.jobs)


# The limit is used to the full


@pytest.mark.parametrize("retry_after", [whole_seconds, lambda wait: wait], ids=["s", "ms"])
@pytest.mark.parametrize("is_configured", [True, False], ids=["from settings", "from headers"])
def test_a_limit_of_requests_is_used_to_the_full(
    url: str, retry_after: Callable[[float], float], is_configured: bool
) -> None:
    provider = MadeUpProvider(1_200, retry_after=retry_after)
    told = limits(requests_per_minute=1_200) if is_configured else None
    world = run_world(World(Clocked(url), provider, jobs(300), settings=told))
    assert all_done(world)
    assert world.used(1_200) >= 0.97
    assert provider.throttled <= 1


@pytest.mark.parametrize("expected_output", [80, 180, 380], ids=["half", "right", "double"])
def test_a_limit_of_tokens_is_used_to_the_full_whatever_is_expected(
    url: str, expected_output: int
) -> None:
    provider = MadeUpProvider(12_000, 120_000, retry_after=whole_seconds)
    work = jobs(400, input_tokens=20, output_tokens=180, expected_output=expected_output)
    world = run_world(
        World(Clocked(url), provider, work, settings=limits(tokens_per_minute=120_000))
    )
    assert all_done(world)
    assert world.used(120_000, of_tokens=True) >= 0.97
    # Until the first answers tell how much such calls take.
    assert provider.throttled <= 12


def test_calls_of_all_sizes_share_a_limit_of_tokens(url: str) -> None:
    sizes = [3_000 if number % 5 == 0 else 20 for number in range(150)]
    work = [Job(n, input_tokens=size, output_tokens=50) for n, size in enumerate(sizes)]
    provider = MadeUpProvider(None, 120_000, retry_after=whole_seconds)
    world = run_world(
        World(Clocked(url), provider, work, settings=limits(tokens_per_minute=120_000))
    )
    assert all_done(world)
    assert world.used(120_000, of_tokens=True) >= 0.93
    assert provider.throttled <= 3


def test_a_limit_that_is_halved_by_the_headers_is_followed_at_once(url: str) -> None:
    provider = MadeUpProvider(1_200, retry_after=whole_seconds)
    world = World(Clocked(url), provider, jobs(400), settings=limits(requests_per_minute=1_200))

    def halve() -> None:
        provider.requests_per_minute = 600

    world.events_at.append((8.0, halve))
    run_world(world)
    assert all_done(world)
    assert world.used(600, since=10.0) >= 0.97
    assert provider.throttled <= 3


def test_a_provider_that_lets_a_whole_minute_burst_is_used_so(url: str) -> None:
    """Its headers say so; nobody has set it."""
    provider = MadeUpProvider(1_200, burst_seconds=60.0)
    world = run_world(World(Clocked(url), provider, jobs(600), latency=(0.05, 0.1)))
    assert all_done(world)
    assert provider.throttled == 0
    assert max(job.done_at or 0.0 for job in world.jobs) < 15.0


def test_an_unknown_limit_starts_modest_and_is_found(url: str) -> None:
    provider = MadeUpProvider(1_200, sends_headers=False, retry_after=whole_seconds)
    world = run_world(World(Clocked(url), provider, jobs(600), slots=64))
    assert all_done(world)
    first_second = [at for at, _ in provider.admitted if at < 0.3]
    assert len(first_second) <= 4
    assert world.used(1_200) >= 0.85
    assert provider.throttled <= 60


def test_calls_in_flight_are_limited(url: str) -> None:
    provider = MadeUpProvider(in_flight=10)
    world = run_world(World(Clocked(url), provider, jobs(200), settings=limits(in_flight=10)))
    assert all_done(world)
    assert provider.throttled == 0


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    set_limits=st.tuples(
        st.sampled_from([None, 60, 300, 3_000]), st.sampled_from([None, 6_000, 90_000])
    ),
    burst=st.sampled_from([1.0, 5.0, 60.0]),
    slots=st.sampled_from([1, 8, 40]),
    sizes=st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 400)), min_size=1, max_size=40),
    strays=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 1_000),
)
def test_the_limit_is_never_exceeded_and_every_job_gets_its_turn(
    url: str,
    set_limits: tuple[int | None, int | None],
    burst: float,
    slots: int,
    sizes: list[tuple[int, int]],
    strays: float,
    seed: int,
) -> None:
    """Over any stretch of time, by the settings alone: the made-up provider limits nothing."""
    requests, tokens = set_limits
    given_limits = {"requests_per_minute": requests, "tokens_per_minute": tokens}
    told = ModelLimits(provider="made-up", burst_seconds=burst, **given_limits)
    work = [
        Job(n, input_tokens=input_, output_tokens=output, expected_output=output, is_bulk=n % 2 > 0)
        for n, (input_, output) in enumerate(sizes)
    ]
    with Redis.from_url(url) as redis:
        redis.flushdb()
    provider = MadeUpProvider(sends_headers=False, strays=strays)
    world = World(
        Clocked(url), provider, work, settings=told, slots=slots, overhead=(0.0, 0.0), seed=seed
    )
    run_world(world)
    assert all_done(world)
    for limit, of_tokens in ((requests, False), (tokens, True)):
        if limit is None:
            continue
        largest = max(input_ + output for input_, output in sizes) if of_tokens else 1
        level = allowed = max(1.0, limit / 60 * burst, largest)
        for (before, _), (at, amount) in pairwise([(0.0, 0.0), *provider.admitted]):
            level = min(allowed, level + limit / 60 * (at - before))
            level -= amount if of_tokens else 1.0
            # A call larger than the bucket leaves it in debt, by its own size at most.
            assert level >= -(largest if of_tokens else 0) - 1e-3


# Fairness


def test_interactive_calls_go_first_and_bulk_is_never_starved(url: str) -> None:
    bulk = jobs(300, is_bulk=True)
    people = [Job(1_000 + n, comes_at=2.0 + n) for n in range(10)]
    provider = MadeUpProvider(1_200)
    world = World(Clocked(url), provider, bulk + people, settings=limits(requests_per_minute=1_200))
    run_world(world)
    waits = [(job.granted_at or math.inf) - (2.0 + n) for n, job in enumerate(people)]
    assert max(waits) < 2.0
    # And with interactive calls without end.
    flood = [Job(n, comes_at=0.0) for n in range(300)]
    batch = [Job(1_000 + n, is_bulk=True) for n in range(20)]
    world = World(
        Clocked(url),
        MadeUpProvider(1_200),
        flood + batch,
        settings=limits(requests_per_minute=1_200),
        slots=400,
    )
    run_world(world)
    # The flood alone lasts 15 s.
    assert max(job.done_at or math.inf for job in batch) < 14.0


def test_waiters_do_not_poll_in_step(url: str) -> None:
    async def work(script: Script) -> list[float]:
        await script.grant()
        verdicts = [await script.ask(patience=10.0) for _ in range(50)]
        return [verdict.seconds for verdict in verdicts if isinstance(verdict, Wait)]

    waits = talk(url, work, requests_per_minute=600)
    assert len(waits) == 50
    # Each is told its own turn, a tenth of a second after the one before.
    assert all(0.09 < later - earlier < 0.11 for earlier, later in pairwise(waits))


def test_a_waiter_that_dies_does_not_hold_up_those_behind_it(url: str) -> None:
    async def work(script: Script) -> Verdict:
        await script.grant()
        await script.ask(name="dies")
        await script.ask(name="lives")
        await script.at(30.0)
        return await script.ask(name="lives")

    assert isinstance(talk(url, work, requests_per_minute=60), Grant)


# All or nothing, too large, leases


def test_a_call_takes_all_dimensions_or_none(url: str) -> None:
    async def work(script: Script) -> None:
        large = Need(1_000, 0)
        await script.grant(large)
        before = await script.clocked.state()
        assert isinstance(await script.ask(large), Wait | Later)
        after = await script.clocked.state()
        assert after["level_requests"] == before["level_requests"]
        assert after["spent_requests"] == before["spent_requests"] == 1

    talk(url, work, requests_per_minute=6_000, tokens_per_minute=1_000)


@pytest.mark.parametrize("limit", ["tokens_per_minute", "input_tokens_per_minute"])
def test_a_call_larger_than_a_minute_is_refused(url: str, limit: str) -> None:
    async def work(script: Script) -> None:
        assert isinstance(await script.ask(Need(10_001, 0)), TooLarge)
        await script.grant(Need(10_000, 0))

    talk(url, work, **{limit: 10_000})


def test_a_call_that_nobody_settles_gives_its_place_back(url: str) -> None:
    async def work(script: Script) -> None:
        await script.grant()
        assert isinstance(await script.ask(), Wait)
        await script.at(59.0)
        assert isinstance(await script.ask(), Wait)
        await script.at(70.0)
        await script.grant()

    talk(url, work, in_flight=1)


def test_a_worker_renews_what_it_has_under_way(url: str) -> None:
    async def run() -> None:
        redis: Any = AsyncRedis.from_url(url, decode_responses=True)
        limiter = RateLimiter(
            SharedBuckets(redis),
            DividedBuckets(lambda: 1),
            [ModelLimits(provider="made-up", in_flight=2)],
            patience_seconds=0.0,
            lease_seconds=20.0,
        )
        kept, settled = [await limiter.acquire(BUCKET, NEED) for _ in range(2)]
        await limiter.settle(settled, Settlement(Outcome.ANSWERED))
        key = "promptstack:limiter:{made-up:key}:model:flight"
        await redis.zadd(key, {kept.grant.waiter: 1.0})
        await limiter.renew()
        [(waiter, until)] = await redis.zrange(key, 0, -1, withscores=True)
        seconds, _ = await redis.time()
        assert waiter == kept.grant.waiter
        assert 15 < until - int(seconds) < 25
        await limiter.aclose()

    asyncio.run(run())


def test_input_and_output_tokens_are_limited_apart(url: str) -> None:
    async def work(script: Script) -> None:
        grant = await script.grant(Need(10, 600))
        waiting = await script.ask(Need(10, 600), patience=100.0)
        assert isinstance(waiting, Wait)
        assert waiting.seconds == pytest.approx(60, rel=0.1)
        await script.settle(grant, need=Need(10, 600), input_tokens=10, output_tokens=600)

    talk(url, work, input_tokens_per_minute=60_000, output_tokens_per_minute=600)


def test_settling_twice_counts_once(url: str) -> None:
    async def work(script: Script) -> None:
        grant = await script.grant(Need(10, 1_000))
        for _ in range(3):
            await script.settle(grant, need=Need(10, 1_000), input_tokens=10, output_tokens=0)
        state = await script.clocked.state()
        assert state["level_tokens"] <= 1_000

    talk(url, work, tokens_per_minute=60_000)


def test_those_who_wait_hear_of_it_when_an_answer_tells_the_limit(url: str) -> None:
    """Without any limit known, few calls are under way; the first answer may tell of many."""

    async def run() -> None:
        limiter = RateLimiter(
            SharedBuckets(AsyncRedis.from_url(url, decode_responses=True)),
            DividedBuckets(lambda: 1),
            [],
            patience_seconds=60.0,
            lease_seconds=60.0,
            # As long a sleep as there is, so that nobody's turn comes by itself.
            uniform=lambda low, high: high * 1_000,
        )
        permits = [await limiter.acquire(BUCKET, NEED) for _ in range(4)]
        waiting = [asyncio.create_task(limiter.acquire(BUCKET, NEED)) for _ in range(20)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in waiting)
        await limiter.settle(permits[0], Settlement(Outcome.ANSWERED, report=ROOM))
        await asyncio.wait_for(asyncio.gather(*waiting), 30.0)
        await limiter.aclose()

    asyncio.run(run())


# Throttled


def test_a_429_pauses_everyone_until_retry_after(url: str) -> None:
    async def work(script: Script) -> None:
        grant = await script.grant()
        await script.settle(grant, Outcome.THROTTLED, retry_after=2.0, report=NO_ROOM)
        for at, kind in ((0.1, Wait), (1.9, Wait), (2.1, Grant)):
            await script.at(at)
            assert isinstance(await script.ask(name="other"), kind)
        grant = await script.grant()
        await script.settle(grant, Outcome.THROTTLED, retry_after=600.0, report=NO_ROOM)
        later = await script.ask()
        assert isinstance(later, Later)
        assert later.seconds == pytest.approx(600, rel=0.01)

    talk(url, work, requests_per_minute=60_000)


def test_one_unexplained_429_pauses_nobody_and_three_do(url: str) -> None:
    async def work(script: Script) -> None:
        for _ in range(2):
            await script.settle(await script.grant(), Outcome.THROTTLED, retry_after=2.0)
        await script.settle(await script.grant(), Outcome.THROTTLED, retry_after=2.0)
        verdict = await script.ask()
        assert isinstance(verdict, Wait)
        assert verdict.seconds == pytest.approx(2.0, abs=0.1)

    talk(url, work)


def test_a_429_that_names_no_time_pauses_longer_each_time(url: str) -> None:
    async def work(script: Script) -> list[float]:
        pauses, now = [], 0.0
        for _ in range(9):
            grant = await script.grant()
            await script.settle(grant, Outcome.THROTTLED, report=NO_ROOM)
            pauses.append((await script.clocked.state())["paused"] - 1_000_000.0 - now)
            now += pauses[-1] + 1.0
            await script.at(now)
        return pauses

    pauses = talk(url, work, requests_per_minute=60_000)
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60], abs=0.01)


@pytest.mark.parametrize("report", [ROOM, None], ids=["its own headers", "headers of others"])
def test_a_429_that_headers_contradict_stops_nobody_else(
    url: str, report: LimitReport | None
) -> None:
    async def work(script: Script) -> None:
        for _ in range(5):
            await script.settle(await script.grant(), report=ROOM)
        before = await script.clocked.state()
        grant = await script.grant()
        await script.settle(grant, Outcome.THROTTLED, retry_after=60.0, report=report)
        await script.grant()
        after = await script.clocked.state()
        assert after["level_requests"] >= before["level_requests"] - 2
        # Headers are believed as before.
        await script.settle(await script.grant(), report=ROOM)
        assert (await script.clocked.state())["level_requests"] > before["level_requests"]

    talk(url, work, requests_per_minute=6_000)


@pytest.mark.parametrize("report", [ROOM, None], ids=["headers", "no headers"])
def test_several_429s_pause_everyone_whatever_headers_say(
    url: str, report: LimitReport | None
) -> None:
    async def work(script: Script) -> None:
        for _ in range(20):
            await script.settle(await script.grant(), report=ROOM)
        refused = 0
        while isinstance(await script.ask(name="other"), Grant):
            grant = await script.grant()
            await script.settle(grant, Outcome.THROTTLED, retry_after=2.0, report=report)
            refused += 1
        assert 5 <= refused <= 15
        paused = (await script.clocked.state())["paused"]
        assert paused == pytest.approx(1_000_000.0 + script.now + 2.0, abs=0.01)

    talk(url, work, requests_per_minute=6_000)


def test_one_429_that_says_that_nothing_is_left_pauses_everyone(url: str) -> None:
    async def work(script: Script) -> None:
        for _ in range(20):
            await script.settle(await script.grant(), report=ROOM)
        grant = await script.grant()
        await script.settle(grant, Outcome.THROTTLED, retry_after=2.0, report=NO_ROOM)
        assert isinstance(await script.ask(), Wait)

    talk(url, work, requests_per_minute=6_000)


@pytest.mark.parametrize(
    ("retry_after", "kind"), [(None, Grant), (1.0, Grant), (30.0, Later)], ids=str
)
def test_a_429_without_headers_pauses_everything_if_its_retry_after_is_long(
    url: str, retry_after: float | None, kind: type[Verdict]
) -> None:
    """Of a provider that never tells how its limits stand."""

    async def work(script: Script) -> None:
        for _ in range(20):
            await script.settle(await script.grant())
        await script.settle(await script.grant(), Outcome.THROTTLED, retry_after=retry_after)
        await script.at(script.now + 0.1)
        assert isinstance(await script.ask(), kind)

    talk(url, work, requests_per_minute=6_000)


@pytest.mark.parametrize("with_headers", [True, False], ids=["headers", "no headers"])
@pytest.mark.parametrize("broken", [0.0, 0.05], ids=["429s", "429s and 503s"])
def test_refusals_at_random_cost_only_the_calls_that_they_hit(
    url: str, *, with_headers: bool, broken: float
) -> None:
    """First a minute's worth that may go at once, then at the rate."""
    provider = MadeUpProvider(
        1_200, burst_seconds=15.0, strays=0.1, strays_have_headers=with_headers, broken=broken
    )
    world = run_world(World(Clocked(url), provider, jobs(700), latency=(0.05, 0.1)))
    assert all_done(world)
    first = sorted(job.done_at or math.inf for job in world.jobs)
    assert first[300] < 4.0
    assert first[-1] < 1.2 * (700 - 300) / 20
    assert provider.throttled <= 7


def test_headers_that_contradict_the_429_are_not_believed(url: str) -> None:
    """A provider that reports room and refuses all the same limits by something else."""

    async def work(script: Script) -> None:
        for _ in range(3):
            await script.settle(
                await script.grant(), Outcome.THROTTLED, retry_after=0.1, report=ROOM
            )
        assert isinstance(await script.ask(), Wait)
        await script.at(script.now + 1.0)
        for _ in range(5):
            await script.settle(await script.grant(), report=ROOM)
        assert (await script.clocked.state())["level_requests"] < 101

    talk(url, work, requests_per_minute=6_000)


def test_spent_quota_stops_the_whole_credential(url: str) -> None:
    async def work(script: Script) -> None:
        await script.settle(await script.grant(), Outcome.QUOTA)
        assert isinstance(await script.ask(), Spent)
        await script.at(61.0)
        await script.grant()

    talk(url, work, requests_per_minute=6_000)


# The circuit


def test_the_circuit_opens_when_half_of_the_last_calls_failed_and_a_probe_closes_it(
    url: str,
) -> None:
    async def work(script: Script) -> None:
        for _ in range(4):
            await script.settle(await script.grant(), Outcome.FAILED)
        for _ in range(6):
            await script.settle(await script.grant())
        await script.settle(await script.grant(), Outcome.FAILED)
        await script.settle(await script.grant(), Outcome.FAILED)
        closed = await script.ask()
        assert isinstance(closed, Closed)
        assert closed.seconds == pytest.approx(10, abs=0.1)
        await script.at(10.1)
        probe = await script.grant()
        assert is_probe(probe)
        # One at a time tries.
        assert isinstance(await script.ask(), Closed)
        await script.settle(probe, Outcome.FAILED)
        again = await script.ask()
        assert isinstance(again, Closed)
        assert again.seconds == pytest.approx(20, abs=0.1)
        await script.at(31.0)
        await script.settle(await script.grant())
        assert not is_probe(await script.grant())
        assert not is_probe(await script.grant())

    talk(url, work, requests_per_minute=60_000)


def test_failures_that_come_back_first_open_no_circuit(url: str) -> None:
    """Of many calls under way together, a 503 needs no time."""

    async def work(script: Script) -> None:
        grants = [await script.grant() for _ in range(100)]
        for grant in grants[:10]:
            await script.settle(grant, Outcome.FAILED, retry_after=1.0)
        for grant in grants[10:]:
            await script.settle(grant)
        for number in range(1_000):
            outcome = Outcome.FAILED if number % 7 == 0 else Outcome.ANSWERED
            await script.settle(await script.grant(), outcome)

    talk(url, work, requests_per_minute=60_000)


def test_many_failures_at_once_open_the_circuit(url: str) -> None:
    async def work(script: Script) -> None:
        for grant in [await script.grant() for _ in range(100)]:
            await script.settle(grant, Outcome.FAILED)
        assert isinstance(await script.ask(), Closed)

    talk(url, work, requests_per_minute=60_000)


def test_a_probe_that_is_cancelled_lets_the_next_one_try(url: str) -> None:
    async def work(script: Script) -> None:
        for _ in range(5):
            await script.settle(await script.grant(), Outcome.FAILED)
        await script.at(10.1)
        await script.settle(await script.grant(), Outcome.CANCELLED)
        assert is_probe(await script.grant())

    talk(url, work, requests_per_minute=60_000)


def test_requests_that_are_wrong_do_not_open_the_circuit(url: str) -> None:
    async def work(script: Script) -> None:
        for _ in range(20):
            await script.settle(await script.grant(), Outcome.REFUSED)
        await script.grant()

    talk(url, work, requests_per_minute=60_000)


def test_a_call_capped_at_a_minutes_tokens_is_refunded_no_more_than_it_was_charged(
    url: str,
) -> None:
    """Its maximum of output is over the limit; what it took is nearly a minute's worth."""

    async def work(script: Script) -> Verdict:
        need = Need(100, 20_000)
        grant = await script.grant(need)
        await script.settle(grant, need=need, input_tokens=100, output_tokens=800)
        return await script.ask(need, patience=0.0)

    verdict = talk(url, work, tokens_per_minute=1_000)
    # 900 tokens of 1,000 a minute: the next call has to wait for most of it.
    assert isinstance(verdict, Later)
    assert verdict.seconds > 45


def test_a_permit_whose_call_was_never_made_is_given_back_whole(url: str) -> None:
    async def work(script: Script) -> Verdict:
        await script.settle(await script.grant(), Outcome.UNUSED)
        return await script.grant()

    assert isinstance(talk(url, work, requests_per_minute=6), Grant)
