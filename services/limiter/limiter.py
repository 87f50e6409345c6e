"""One limiter for all workers: asks Redis, waits a little, and falls to a share without Redis."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
"""After a failure, how long Redis is left alone: a call waits for its permit meanwhile."""
LONGEST_SLEEP = 0.5
"""Between two questions, near one's turn: limits may rise, and those ahead may leave, before."""
SHORTEST_SLEEP = 0.004
MOST_BUCKETS = 10_000


@dataclass(frozen=True, eq=False)
class Permit:
    """Leave to make one call; to be settled in any case."""

    bucket: Bucket
    need: Need
    grant: Grant
    is_shared: bool
    waited_seconds: float


WAITS = {
    "pause": "has asked us to pause",
    "in_flight": "has as many calls under way as it allows",
}
"""Why a call must wait, in words. Any other reason is an amount of the limit, such as tokens."""


class RateLimiter:
    """Says when a call may leave."""

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
        """Take `settings` in the order of their precedence: the first that matches holds.

        A call counts as ended `lease_seconds` after its worker has renewed its lease.
        """
        self._shared = shared
        self._divided = divided
        self._settings = settings
        self.patience_seconds = patience_seconds
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._uniform = uniform
        self._circuit = CircuitBreaker(REST_SECONDS, clock=clock)
        self._known: dict[Bucket, Limits] = {}
        self._held: set[Permit] = set()
        self._waiting: dict[Bucket, asyncio.Event] = {}

    def settings_for(self, provider: str, model: str) -> ModelLimits | None:
        """What a person has set for a model."""
        for limits in self._settings:
            if limits.provider == provider and fnmatchcase(model, limits.model):
                return limits
        return None

    async def acquire(self, bucket: Bucket, need: Need) -> Permit:
        """Wait for leave to make a call, up to the patience of a worker.

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
                await self._leave(bucket, waiter, need)
            raise

    async def room(self, bucket: Bucket) -> int:
        """How many calls more than wait now could leave soon; 0 where nobody knows."""
        if self._circuit.is_open():
            return 0
        try:
            return await self._shared.room(bucket, self._of(bucket), self.patience_seconds)
        except (RedisError, OSError) as error:
            self._rest(error)
            return 0

    async def limits(self, bucket: Bucket) -> Limits:
        """What a person has set, and not more than the provider has told of."""
        limits = Limits.of(self._of(bucket))
        if self._circuit.is_open():
            return limits
        try:
            return limits.within(await self._shared.told(bucket))
        except (RedisError, OSError) as error:
            self._rest(error)
            return limits

    async def settle(self, permit: Permit, settlement: Settlement) -> None:
        """Say what the call came to. Never raises: without Redis, its lease ends by itself."""
        self._held.discard(permit)
        if not permit.is_shared:
            self._divided.settle(permit.bucket, settlement)
            return
        try:
            is_known_now = await self._shared.settle(
                permit.bucket,
                self._of(permit.bucket),
                permit.grant,
                permit.need,
                settlement,
            )
            if is_known_now and (waiting := self._waiting.pop(permit.bucket, None)):
                waiting.set()
        except (RedisError, OSError) as error:
            self._rest(error)

    async def renew(self) -> None:
        """Keep the leases of the calls under way; to be called several times a lease."""
        if self._circuit.is_open():
            return
        held = [(permit.bucket, permit.grant) for permit in self._held if permit.is_shared]
        try:
            await self._shared.renew(held, self._lease_seconds)
        except (RedisError, OSError) as error:
            self._rest(error)

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await self._shared.aclose()

    async def _ask(
        self, bucket: Bucket, waiter: str, need: Need, patience: float
    ) -> tuple[Verdict, bool]:
        if not self._circuit.is_open():
            try:
                verdict = await self._shared.ask(
                    bucket,
                    self._of(bucket),
                    waiter,
                    need,
                    patience=patience,
                    lease=self._lease_seconds,
                    longest_sleep=LONGEST_SLEEP,
                )
            except (RedisError, OSError) as error:
                self._rest(error)
            else:
                self._circuit.reset()
                if isinstance(verdict, Grant):
                    self._remember(bucket, verdict.limits)
                return verdict, True
        limits = self._known.get(bucket) or Limits.of(self._of(bucket))
        return self._divided.ask(bucket, limits, need, patience), False

    async def _leave(self, bucket: Bucket, waiter: str, need: Need) -> None:
        try:
            await self._shared.leave(bucket, self._of(bucket), waiter, need)
        except (RedisError, OSError) as error:
            self._rest(error)  # it is forgotten when it doesn't ask again

    def _of(self, bucket: Bucket) -> ModelLimits:
        found = self.settings_for(bucket.provider, bucket.model)
        return found or ModelLimits(provider=bucket.provider)

    def _remember(self, bucket: Bucket, limits: Limits) -> None:
        if len(self._known) >= MOST_BUCKETS:
            self._known.clear()
        self._known[bucket] = limits

    def _sleep(self, seconds: float) -> float:
        """Until one's turn or just before, and not in step with others who were told the same.

        Nobody comes late: a bucket that is full by then gathers no more.
        """
        spread = self._uniform(0.9, 1.0) * seconds + self._uniform(0.0, SHORTEST_SLEEP)
        longest = max(LONGEST_SLEEP, seconds / 2) * self._uniform(0.8, 1.0)
        return min(max(SHORTEST_SLEEP, spread), longest)

    async def _sleep_or_hear(self, bucket: Bucket, seconds: float) -> None:
        """Wait so long, or until an answer tells a limit: there may be room for all at once."""
        if len(self._waiting) >= MOST_BUCKETS:
            self._waiting.clear()
        waiting = self._waiting.setdefault(bucket, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await waiting.wait()

    def _rest(self, error: Exception) -> None:
        if self._circuit.trip():
            self._divided.forget()
            logger.warning(
                "the shared rate limit is away (%s); this worker takes its share of it",
                type(error).__name__,
            )


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
