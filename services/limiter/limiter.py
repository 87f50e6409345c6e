"""The rate limiter that callers ask: it waits for a permit, and works without Redis too.

It asks the buckets that all workers share in Redis (`shared.py`). While Redis is away, it asks
those of this worker, which hold its share of each limit (`divided.py`).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from uuid import uuid4

from redis.exceptions import RedisError

from promptstack.config.models_file import ModelLimits
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.errors import (
    CircuitOpen,
    LimiterWait,
    QuotaSpent,
    RequestTooLarge,
)
from promptstack.services.limiter.shared import SharedBuckets
from promptstack.services.limiter.terms import (
    Bucket,
    Closed,
    Grant,
    Later,
    Limits,
    Need,
    Settlement,
    Spent,
    TooLarge,
    Verdict,
    Wait,
)

logger = logging.getLogger(__name__)

REST_SECONDS = 1.0
"""How long Redis is left alone after a failure. This worker then uses its share."""
LONGEST_SLEEP = 0.5
"""Between two questions of a call whose turn is near: limits may rise, calls ahead may give up."""
SHORTEST_SLEEP = 0.004
MOST_BUCKETS = 10_000


@dataclass(frozen=True, eq=False)
class Permit:
    """Permission to make one call. It must be settled, whatever happens."""

    bucket: Bucket
    need: Need
    grant: Grant
    is_shared: bool
    waited_seconds: float


WAITS = {
    "pause": "has asked us to pause",
    "in_flight": "has as many calls under way as it allows",
}
"""Why a call must wait, in words. Any other reason is the name of a limit, such as `tokens`."""


class RateLimiter:
    """Decides when a call may be sent."""

    def __init__(
        self,
        shared: SharedBuckets,
        divided: DividedBuckets,
        settings: Sequence[ModelLimits],
        *,
        patience_seconds: float,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Take `settings` in order of precedence: the first that matches a model holds.

        A call counts as ended when its worker has not renewed its lease for `lease_seconds`.
        """
        self._shared = shared
        self._divided = divided
        self._find = lru_cache(maxsize=MOST_BUCKETS)(partial(_first_match, settings))
        self.patience_seconds = patience_seconds
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._uniform = uniform
        self._circuit = CircuitBreaker(REST_SECONDS, clock=clock)
        self._known: dict[Bucket, Limits] = {}
        self._held: set[Permit] = set()
        self._waiting: dict[Bucket, asyncio.Event] = {}

    def settings_for(self, provider: str, model: str) -> ModelLimits | None:
        """The limits that a person has set for a model."""
        return self._find(provider, model)

    def _of(self, bucket: Bucket) -> ModelLimits:
        return self._find(bucket.provider, bucket.model) or _unlimited(bucket.provider)

    async def acquire(self, bucket: Bucket, need: Need) -> Permit:
        """Wait for permission to make a call, for `patience_seconds` at most.

        Raises `LimiterWait`, `CircuitOpen`, `RequestTooLarge`, `QuotaSpent`.
        """
        waiter = uuid4().hex
        started = self._clock()
        was_shared = False
        try:
            while True:
                left = self.patience_seconds - (self._clock() - started)
                verdict, was_shared = await self._ask(bucket, waiter, need, max(0.0, left))
                match verdict:
                    case Grant():
                        waited = self._clock() - started
                        permit = Permit(bucket, need, verdict, was_shared, waited)
                        self._held.add(permit)
                        return permit
                    case Wait(seconds):
                        await self._sleep_or_hear(bucket, self._sleep(seconds))
                    case _:
                        raise _refusal(bucket, verdict)
        except asyncio.CancelledError:
            if was_shared:
                with self._outages_noted():  # it is forgotten when it doesn't ask again
                    await self._shared.leave(bucket, self._of(bucket), waiter, need)
            raise

    async def room(self, bucket: Bucket) -> int:
        """How many more calls than already wait could be sent soon; 0 while Redis is away."""
        if not self._circuit.is_open():
            with self._outages_noted():
                return await self._shared.room(bucket, self._of(bucket), self.patience_seconds)
        return 0

    async def limits(self, bucket: Bucket) -> Limits:
        """The limits that a person has set, lowered to those that the provider has reported."""
        limits = Limits.of(self._of(bucket))
        if not self._circuit.is_open():
            with self._outages_noted():
                return limits.within(await self._shared.told(bucket))
        return limits

    async def settle(self, permit: Permit, settlement: Settlement) -> None:
        """Report how the call ended. Never raises: without Redis, its lease expires by itself."""
        answer = self._report(permit, settlement, at_once=True)
        if answer is not None:
            await asyncio.wait([answer])

    def report(self, permit: Permit, settlement: Settlement) -> None:
        """The same for one who does not wait for Redis: what was answered goes on at once."""
        self._report(permit, settlement, at_once=False)

    def _report(
        self, permit: Permit, settlement: Settlement, *, at_once: bool
    ) -> "asyncio.Future[int] | None":
        self._held.discard(permit)
        bucket = permit.bucket
        if not permit.is_shared:
            self._divided.settle(bucket, settlement)
            return None
        settings = self._of(bucket)
        answer = self._shared.report(
            bucket, settings, permit.grant, permit.need, settlement, at_once=at_once
        )
        answer.add_done_callback(partial(self._reported, bucket))
        return answer

    def _reported(self, bucket: Bucket, answer: "asyncio.Future[int]") -> None:
        if answer.cancelled():
            return
        with self._outages_noted():
            is_known_now = answer.result()
            if is_known_now and (waiting := self._waiting.pop(bucket, None)):
                waiting.set()

    async def renew(self) -> None:
        """Renew the leases of the calls in flight. Call this several times per lease."""
        if self._circuit.is_open():
            return
        held = [(permit.bucket, permit.grant) for permit in self._held if permit.is_shared]
        with self._outages_noted():
            await self._shared.renew(held, self._lease_seconds)

    async def aclose(self) -> None:
        """Send what was reported, and close the connections to Redis."""
        await self._shared.aclose()

    async def _ask(
        self, bucket: Bucket, waiter: str, need: Need, patience: float
    ) -> tuple[Verdict, bool]:
        if not self._circuit.is_open():
            with self._outages_noted():
                verdict = await self._shared.ask(
                    bucket,
                    self._of(bucket),
                    waiter,
                    need,
                    patience=patience,
                    lease=self._lease_seconds,
                    longest_sleep=LONGEST_SLEEP,
                )
                self._circuit.reset()
                if isinstance(verdict, Grant):
                    self._remember(bucket, verdict.limits)
                return verdict, True
        limits = self._known.get(bucket) or Limits.of(self._of(bucket))
        return self._divided.ask(bucket, limits, need, patience), False

    def _remember(self, bucket: Bucket, limits: Limits) -> None:
        if len(self._known) >= MOST_BUCKETS:
            self._known.clear()
        self._known[bucket] = limits

    def _sleep(self, seconds: float) -> float:
        """Until the call's turn or just before it, with jitter against waiters in step.

        Never later: a bucket that is full by then gathers nothing more.
        """
        spread = self._uniform(0.9, 1.0) * seconds + self._uniform(0.0, SHORTEST_SLEEP)
        longest = max(LONGEST_SLEEP, seconds / 2) * self._uniform(0.8, 1.0)
        return min(max(SHORTEST_SLEEP, spread), longest)

    async def _sleep_or_hear(self, bucket: Bucket, seconds: float) -> None:
        """Wait so long, or until the first limit is reported: all may then have room at once."""
        if len(self._waiting) >= MOST_BUCKETS:
            self._waiting.clear()
        waiting = self._waiting.setdefault(bucket, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiting.wait()

    @contextmanager
    def _outages_noted(self) -> Iterator[None]:
        """When Redis fails, leave it alone for a moment. The caller goes on without its answer."""
        try:
            yield
        except (RedisError, OSError) as error:
            if self._circuit.trip():
                self._divided.forget()
                logger.warning(
                    "the shared rate limit is away (%s); this worker takes its share of it",
                    type(error).__name__,
                )


def _first_match(settings: Sequence[ModelLimits], provider: str, model: str) -> ModelLimits | None:
    for limits in settings:
        if limits.provider == provider and fnmatchcase(model, limits.model):
            return limits
    return None


@lru_cache(maxsize=1_024)
def _unlimited(provider: str) -> ModelLimits:
    return ModelLimits(provider=provider)


def _refusal(bucket: Bucket, verdict: Verdict) -> Exception:
    match verdict:
        case Later(seconds, why):
            return LimiterWait(
                f"{bucket.name} {WAITS.get(why) or f'has no {why} left for now'}; "
                "the job waits its turn.",
                retry_after=seconds,
            )
        case Closed(seconds):
            return CircuitOpen(
                f"{bucket.name} has failed half of its last calls and is left alone for "
                f"{seconds:.0f} s.",
                retry_after=seconds,
            )
        case TooLarge(limit, dimension):
            return RequestTooLarge(
                f"The call needs more than the {limit:,.0f} {dimension} a minute that "
                f"{bucket.name} allows; shorten it or raise the limit."
            )
        case Spent():
            return QuotaSpent(
                f"The account at {bucket.provider} has no quota or money left for "
                f"{bucket.model}; top it up, then retry the job."
            )
        case _:
            raise AssertionError(verdict)
