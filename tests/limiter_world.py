"""A world in virtual time for the limiter: its real script in a real Valkey, and all else made up.

Workers with slots, calls that take time on the way and at the provider, and a provider that
enforces its limits as the real ones do. A minute passes in a second or two, and the same seed
gives the same minute.
"""

import asyncio
import heapq
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar
from uuid import UUID

from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from promptstack.config.models_file import ModelLimits
from promptstack.repositories.access_models import Tier
from promptstack.services.execution.backoff import Backoff
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.limiter import RateLimiter
from promptstack.services.limiter.scripts import read_scripts
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import (
    Bucket,
    Closed,
    Grant,
    Later,
    Need,
    Settlement,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import Dimension, LimitReport, LimitState, Outcome

BUCKET = Bucket("made-up", "key", "model")
PATIENCE = 3.0
Event = AsyncIterator[float] | Callable[[], None]
"""What happens at a time: an act, or steps that each say how long they take."""
START = 1_000_000.0
NEED = Need(100, 100)

T = TypeVar("T")


class Clocked:
    """The limiter's script on a clock that a test sets."""

    def __init__(self, url: str) -> None:
        self._redis: Redis = Redis.from_url(url, decode_responses=True)
        scripts = read_scripts()
        real = "redis.call('TIME')"
        assert all(source.count(real) == 1 for source in scripts.values())
        self.buckets = SharedBuckets(
            self._redis,
            {
                name: source.replace(real, "{redis.call('GET', 'clock'), 0}")
                for name, source in scripts.items()
            },
        )

    async def set(self, now: float) -> None:
        await self._redis.set("clock", f"{START + now:.6f}")

    async def state(self) -> dict[str, float]:
        """What the script knows of the bucket."""
        stored = await self._redis.hgetall("promptstack:limiter:{made-up:key}:model")
        return {str(name): float(value) for name, value in stored.items()}

    async def aclose(self) -> None:
        await self.buckets.aclose()


@dataclass
class MadeUpProvider:
    """Token buckets that fill continuously, as the simulator has them."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    in_flight: int | None = None
    burst_seconds: float = 1.0
    sends_headers: bool = True
    strays: float = 0.0
    """The share of calls that get a 429 for no reason, told to come again after a second."""
    strays_have_headers: bool = True
    broken: float = 0.0
    """The share of calls that get a 503."""
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    retry_after: Callable[[float], float | None] = lambda wait: wait
    levels: dict[str, float] = field(default_factory=dict)
    filled_at: float = 0.0
    flying: int = 0
    admitted: list[tuple[float, float]] = field(default_factory=list)
    """When, and with how many tokens."""
    throttled: int = 0

    def limits(self) -> dict[Dimension, float]:
        found: dict[Dimension, float] = {}
        if self.requests_per_minute is not None:
            found["requests"] = self.requests_per_minute
        if self.tokens_per_minute is not None:
            found["tokens"] = self.tokens_per_minute
        return found

    def admit(self, now: float, tokens: float) -> tuple[Outcome, float | None, LimitReport | None]:
        """Whether a call that comes now is let in, else after how long to come again."""
        wait = 0.0
        self._fill(now)
        drawn = self.chance.random()
        if drawn < self.strays:
            return Outcome.THROTTLED, 1.0, self._report() if self.strays_have_headers else None
        if drawn < self.strays + self.broken:
            return Outcome.FAILED, 1.0, None
        for name, limit in self.limits().items():
            cost = 1.0 if name == "requests" else tokens
            wait = max(wait, (min(cost, self._full(limit)) - self.levels[name]) / (limit / 60))
        if self.in_flight is not None and self.flying >= self.in_flight:
            wait = max(wait, 0.5)
        if wait > 1e-9:
            self.throttled += 1
            return Outcome.THROTTLED, self.retry_after(wait), self._report()
        for name in self.limits():
            self.levels[name] -= 1.0 if name == "requests" else tokens
        self.flying += 1
        self.admitted.append((now, tokens))
        return Outcome.ANSWERED, None, self._report()

    def _fill(self, now: float) -> None:
        for name, limit in self.limits().items():
            full = self._full(limit)
            filled = self.levels.get(name, full) + limit / 60 * (now - self.filled_at)
            self.levels[name] = min(full, filled)
        self.filled_at = now

    def _full(self, limit: float) -> float:
        return max(1.0, limit / 60 * self.burst_seconds)

    def _report(self) -> LimitReport | None:
        if not self.sends_headers:
            return None
        return LimitReport(
            {
                name: LimitState(int(limit), max(0, int(self.levels[name])))
                for name, limit in self.limits().items()
            }
        )


@dataclass
class Job:
    """A job of the made-up world."""

    number: int
    input_tokens: int = 100
    output_tokens: int = 100
    expected_output: int = 100
    is_bulk: bool = False
    user_id: UUID | None = None
    tier: Tier = Tier.FREE
    comes_at: float = 0.0
    granted_at: float | None = None
    done_at: float | None = None
    calls: int = 0
    deferred: int = 0


class Script:
    """Talks to the script call by call."""

    def __init__(self, clocked: Clocked, limits: ModelLimits) -> None:
        self.clocked = clocked
        self.limits = limits
        self.count = 0
        self.now = 0.0

    async def at(self, now: float) -> None:
        self.now = now
        await self.clocked.set(now)

    async def ask(
        self, need: Need = NEED, *, name: str | None = None, patience: float = 3.0
    ) -> Verdict:
        self.count += 1
        return await self.clocked.buckets.ask(
            BUCKET,
            self.limits,
            name or f"waiter-{self.count}",
            need,
            patience=patience,
            lease=60.0,
            longest_sleep=0.5,
        )

    async def grant(self, need: Need = NEED) -> Grant:
        """Ask, and wait where a fresh bucket has not gathered enough yet."""
        name = f"grant-{self.count}"
        verdict = await self.ask(need, name=name)
        while isinstance(verdict, Wait) and verdict.seconds < 0.05:
            await self.at(self.now + verdict.seconds)
            verdict = await self.ask(need, name=name)
        assert isinstance(verdict, Grant), verdict
        return verdict

    async def settle(
        self, grant: Grant, outcome: Outcome = Outcome.ANSWERED, need: Need = NEED, **more: object
    ) -> None:
        settlement = Settlement(outcome, latency_seconds=0.1, **more)  # type: ignore[arg-type]
        await self.clocked.buckets.settle(BUCKET, self.limits, grant, need, settlement)


def talk(url: str, work: Callable[[Script], Awaitable[T]], **limits: float) -> T:
    """Talk to a fresh bucket, at time 0 to begin with."""

    async def run() -> T:
        clocked = Clocked(url)
        try:
            await clocked.set(0.0)
            script = Script(clocked, ModelLimits.model_validate({"provider": "made-up", **limits}))
            return await work(script)
        finally:
            await clocked.aclose()

    with BlockingRedis.from_url(url) as redis:
        redis.flushdb()
    return asyncio.run(run())


class World:
    """Runs jobs through workers until all are done."""

    def __init__(
        self,
        clocked: Clocked,
        provider: MadeUpProvider,
        jobs: list[Job],
        *,
        settings: ModelLimits | None = None,
        slots: int = 32,
        latency: tuple[float, float] = (0.3, 0.6),
        overhead: tuple[float, float] = (0.005, 0.03),
        seed: int = 0,
    ) -> None:
        self.clocked = clocked
        self.provider = provider
        self.jobs = jobs
        self.settings = settings or ModelLimits(provider="made-up")
        self.random = random.Random(seed)
        self._limiter = RateLimiter(
            clocked.buckets,
            DividedBuckets(lambda: 1),
            [self.settings],
            patience_seconds=PATIENCE,
            lease_seconds=60.0,
            uniform=self.random.uniform,
        )
        self._free = slots
        self._latency = latency
        self._overhead = overhead
        self._waiting: list[Job] = []
        self._away: list[Job] = []
        self._events: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self.now = 0.0
        self.asked = 0
        self.events_at: list[tuple[float, Callable[[], None]]] = []
        """What a test wants to happen, by time."""

    async def run(self, until: float = 100_000.0) -> None:
        """Let all jobs end."""
        for job in self.jobs:
            self._at(job.comes_at, partial(self._arrive, job))
        self._at(1.0, self._call_back())
        for at, action in self.events_at:
            self._at(at, action)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            assert self.now < until, "not all jobs have ended"
            if callable(event):
                event()
                continue
            await self.clocked.set(self.now)
            delay = await anext(event, None)
            if delay is not None:
                self._at(self.now + delay, event)

    def _at(self, when: float, event: Event) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    async def _call_back(self) -> AsyncIterator[float]:
        """What the reconciler does: call jobs back that were sent away for too long."""
        while any(job.done_at is None for job in self.jobs):
            if self._away:
                room = await self.clocked.buckets.room(BUCKET, self.settings, PATIENCE)
                for job in sorted(self._away, key=lambda job: job.comes_at)[:room]:
                    self._at(self.now, partial(self._arrive, job))
            yield 1.0

    def _arrive(self, job: Job) -> None:
        if job.deferred:
            if job not in self._away:
                return
            self._away.remove(job)
        self._waiting.append(job)
        self._start_next()

    def _start_next(self) -> None:
        if self._free and self._waiting:
            # The queues of interactive and of bulk work are taken from in turns.
            is_bulk = self.random.random() < 0.5
            fitting = [job for job in self._waiting if job.is_bulk == is_bulk] or self._waiting
            job = fitting[0]
            self._waiting.remove(job)
            self._free -= 1
            self._at(self.now, self._work(job))

    async def _work(self, job: Job) -> AsyncIterator[float]:
        yield self.random.uniform(*self._overhead)
        need = Need(job.input_tokens, job.expected_output, job.is_bulk, job.user_id, job.tier)
        refused = 0
        while True:
            grant, began, name = None, self.now, f"{job.number}-{job.calls}-{job.deferred}"
            while grant is None:
                verdict = await self.ask(name, need, PATIENCE - (self.now - began))
                if isinstance(verdict, Grant):
                    grant = verdict
                elif isinstance(verdict, Wait):
                    yield self._limiter._sleep(verdict.seconds)
                else:
                    assert isinstance(verdict, Later | Closed), verdict
                    self._defer(job, verdict.seconds)
                    return
            job.calls += 1
            yield self.random.uniform(*self._overhead)
            if job.granted_at is None:
                job.granted_at = self.now
            tokens = job.input_tokens + job.output_tokens
            outcome, retry_after, report = self.provider.admit(self.now, tokens)
            if outcome is Outcome.ANSWERED:
                latency = self.random.uniform(*self._latency)
                yield latency
                self.provider.flying -= 1
                settlement = Settlement(
                    Outcome.ANSWERED,
                    latency,
                    input_tokens=job.input_tokens,
                    output_tokens=job.output_tokens,
                    report=report,
                )
                await self.settle(grant, need, settlement)
                yield self.random.uniform(*self._overhead)
                job.done_at = self.now
                self._free += 1
                self._start_next()
                return
            yield 0.002
            refused += 1
            await self.settle(grant, need, Settlement(outcome, 0.002, retry_after, report=report))
            wait = Backoff(1.0, 300.0, uniform=self.random.uniform).delay(refused, retry_after)
            if refused == 3 or wait > PATIENCE:
                self._defer(job, wait)
                return
            yield wait

    def _defer(self, job: Job, seconds: float) -> None:
        self._free += 1
        self._start_next()
        job.deferred += 1
        job.comes_at = self.now + seconds + self.random.uniform(0, 1.0)
        self._away.append(job)
        self._at(job.comes_at, partial(self._arrive, job))

    async def ask(self, name: str, need: Need, patience: float) -> Verdict:
        self.asked += 1
        return await self.clocked.buckets.ask(
            BUCKET,
            self.settings,
            name,
            need,
            patience=max(0.0, patience),
            lease=60.0,
            longest_sleep=0.5,
        )

    async def settle(self, grant: Grant, need: Need, settlement: Settlement) -> None:
        await self.clocked.buckets.settle(BUCKET, self.settings, grant, need, settlement)

    def used(self, ceiling: float, *, of_tokens: bool = False, since: float = 0.0) -> float:
        """The share of a minute's `ceiling` that was used, from `since` to the last admission."""
        chosen = [(at, tokens if of_tokens else 1.0) for at, tokens in self.provider.admitted]
        chosen = [(at, amount) for at, amount in chosen if at >= since]
        passed = chosen[-1][0] - chosen[0][0]
        return sum(amount for _, amount in chosen) / (ceiling / 60 * passed)


def run_world(world: World, until: float = 100_000.0) -> World:
    """Run a world on a loop of its own."""

    async def run() -> None:
        try:
            await world.run(until)
        finally:
            await world.clocked.aclose()

    asyncio.run(run())
    return world
