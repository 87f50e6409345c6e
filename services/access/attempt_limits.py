"""How often a password may be tried: for each account, and from each address.

Each has a bucket of attempts that fills up again with time (GCRA). Redis keeps them for all
processes. While Redis is away each process has a share of its own: nobody is let in without a
limit, and nobody is locked out.
"""

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import SIGN_IN_KEY
from promptstack.services.access.errors import TooManyAttempts
from promptstack.services.access.signing import SigningKeys
from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

LOCAL_SHARE = 4
"""Each process allows a quarter while Redis is away."""
MOST_LOCAL = 10_000
"""Buckets that a process remembers meanwhile."""

TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local wait, full = 0, {}
for i, key in ipairs(KEYS) do
  local burst, every = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  full[i] = math.max(tonumber(redis.call('GET', key) or now), now) + every
  wait = math.max(wait, full[i] - now - burst * every)
end
if wait > 0 then return wait end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', full[i]), 'PX', math.ceil(full[i] - now))
end
return 0
"""
"""Takes one attempt from all of these buckets, or from none, and says how long to wait then. A
bucket is the time at which it is full again."""
GIVE_BACK = """
local full = tonumber(redis.call('GET', KEYS[1]) or 0) - ARGV[1]
local left = redis.call('PTTL', KEYS[1]) - ARGV[1]
if left > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', left)
else
  redis.call('DEL', KEYS[1])
end
return redis.call('DEL', KEYS[2])
"""
"""Gives one attempt back to the first bucket, and fills the second."""


@dataclass(frozen=True)
class Allowance:
    """How many attempts at once, and how soon there is another one."""

    attempts: int
    seconds_each: float


ACCOUNT = Allowance(attempts=10, seconds_each=60)
ADDRESS = Allowance(attempts=50, seconds_each=10)
"""Many people may share one."""
TOLD = Allowance(attempts=1, seconds_each=15)
"""How often a refusal is news."""


@dataclass(frozen=True)
class Attempt:
    """The buckets that an attempt was taken from."""

    account: str
    address: str


class AttemptLimits:
    """Counts attempts before the password is looked at, so that many at once are counted too."""

    def __init__(
        self,
        redis: Redis,
        keys: SigningKeys,
        *,
        clock: Callable[[], float] = time.monotonic,
        account: Allowance = ACCOUNT,
        address: Allowance = ADDRESS,
    ) -> None:
        self._take = redis.register_script(TAKE)
        self._give_back = redis.register_script(GIVE_BACK)
        self._keys = keys
        self._allowances = (account, address)
        self._breaker = CircuitBreaker()
        self._local = LocalBuckets(clock)
        self._told = LocalBuckets(clock)

    def take(self, email: str, address: str, *, is_known: bool) -> Attempt:
        """Take an attempt. Raises `TooManyAttempts`, which says how long to wait.

        An address where the account's person has signed in before has a bucket of its own for that
        account: strangers who guess the password lock nobody out.
        """
        account = f"account:{email}:{address if is_known else ''}"
        attempt = Attempt(self._name(account), self._name(f"address:{address}"))
        buckets = dict(zip((attempt.account, attempt.address), self._allowances, strict=True))
        wait = self._shared_wait(buckets)
        if wait is None:
            wait = self._local.take(buckets)
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyAttempts(
                f"Too many passwords were tried. Try again in {seconds} s.",
                retry_after=seconds,
                is_news=self._told.take({attempt.address: TOLD}) <= 0,
            )
        return attempt

    def succeeded(self, attempt: Attempt) -> None:
        """Give the attempt back: it was no guess. The account begins anew."""
        seconds_each = self._allowances[1].seconds_each
        self._local.give_back(attempt.address, seconds_each, attempt.account)
        if self._breaker.is_open():
            return
        try:
            every = math.ceil(seconds_each * 1_000)
            self._give_back(keys=[attempt.address, attempt.account], args=[every])
        except RedisError:
            self._breaker.trip()

    def _shared_wait(self, buckets: Mapping[str, Allowance]) -> float | None:
        """The wait in seconds, 0 for a taken attempt; None while Redis is away."""
        if self._breaker.is_open():
            return None
        arguments = [
            number
            for each in buckets.values()
            for number in (each.attempts, math.ceil(each.seconds_each * 1_000))
        ]
        try:
            wait = float(self._take(keys=[*buckets], args=arguments))
        except RedisError as error:
            if self._breaker.trip():
                logger.warning(
                    "Redis is away (%s): attempts to sign in are counted in each process",
                    type(error).__name__,
                )
            return None
        self._breaker.reset()
        return wait / 1_000

    def _name(self, bucket: str) -> str:
        """Redis learns no e-mail address."""
        return SIGN_IN_KEY.format(bucket=self._keys.sign(bucket)[:32])


class LocalBuckets:
    """The buckets of one process: each a share of what all processes have together."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, buckets: Mapping[str, Allowance]) -> float:
        """Take one attempt from all, or from none. Returns how long to wait then."""
        with self._lock:
            now, wait = self._clock(), 0.0
            full = {}
            for name, allowance in buckets.items():
                burst = max(1, allowance.attempts // LOCAL_SHARE)
                every = allowance.seconds_each * LOCAL_SHARE
                full[name] = max(self._full_at.get(name, now), now) + every
                wait = max(wait, full[name] - now - burst * every)
            if wait <= 0:
                for name, time_ in full.items():
                    self._full_at[name] = time_
                    self._full_at.move_to_end(name)
                while len(self._full_at) > MOST_LOCAL:
                    self._full_at.popitem(last=False)
            return wait

    def give_back(self, address: str, seconds_each: float, account: str) -> None:
        """Give one attempt back to the first bucket, and fill the second."""
        with self._lock:
            if address in self._full_at:
                self._full_at[address] -= seconds_each * LOCAL_SHARE
            self._full_at.pop(account, None)
