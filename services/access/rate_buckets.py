"""Buckets of attempts or requests, which fill up again with time (GCRA).

Redis keeps them for all processes. While Redis is away each process has a share of its own: nobody
goes without a limit, and nobody is locked out.
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

from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

LOCAL_SHARE = 4
"""Each process allows a quarter while Redis is away."""
MOST_LOCAL = 10_000
"""Buckets that a process remembers meanwhile."""

TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local wait, full, longest = 0, {}, 0
for i, key in ipairs(KEYS) do
  local burst, every = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  full[i] = math.max(tonumber(redis.call('GET', key) or now), now) + every
  wait = math.max(wait, full[i] - now - burst * every)
  longest = math.max(longest, full[i] - now)
end
if wait > 0 then return {wait, longest} end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', full[i]), 'PX', math.ceil((full[i] - now) / 1000))
end
return {0, longest}
"""
"""Takes one attempt from all of these buckets, or from none, and says how long to wait then, and
how long until all are full. A bucket is the time at which it is full again, in microseconds."""


@dataclass(frozen=True)
class Allowance:
    """How many attempts at once, and how soon there is another one."""

    attempts: int
    seconds_each: float


@dataclass(frozen=True)
class Taken:
    """What became of taking an attempt."""

    wait: float
    """Seconds until there is one; 0 where it was taken."""
    full_in: float
    """Seconds until all of the buckets are full again."""


class RateBuckets:
    """Takes from buckets that all processes share, or from this process's own."""

    def __init__(
        self, redis: Redis, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`what` is counted, for the log."""
        self._take = redis.register_script(TAKE)
        self._what = what
        self._breaker = CircuitBreaker()
        self.local = LocalBuckets(clock, LOCAL_SHARE)

    def take(self, buckets: Mapping[str, Allowance]) -> Taken:
        """Take one from all of these, or from none."""
        taken = self._take_shared(buckets)
        return self.local.take(buckets) if taken is None else taken

    def _take_shared(self, buckets: Mapping[str, Allowance]) -> Taken | None:
        """What came of it; None while Redis is away."""
        if self._breaker.is_open():
            return None
        arguments = [
            number
            for each in buckets.values()
            for number in (each.attempts, math.ceil(each.seconds_each * 1_000_000))
        ]
        try:
            wait, full_in = self._take(keys=[*buckets], args=arguments)
        except RedisError as error:
            if self._breaker.trip():
                logger.warning(
                    "Redis is away (%s): %s are counted in each process",
                    type(error).__name__,
                    self._what,
                )
            return None
        self._breaker.reset()
        return Taken(float(wait) / 1_000_000, float(full_in) / 1_000_000)

    def run(self, script: Callable[[], object]) -> None:
        """Run another script on them; while Redis is away, none."""
        if self._breaker.is_open():
            return
        try:
            script()
        except RedisError:
            self._breaker.trip()


class LocalBuckets:
    """The buckets of one process: a part of what `share` processes have together."""

    def __init__(self, clock: Callable[[], float], share: int = 1) -> None:
        self._clock = clock
        self._share = share
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, buckets: Mapping[str, Allowance]) -> Taken:
        """Take one attempt from all, or from none."""
        with self._lock:
            now, wait, longest = self._clock(), 0.0, 0.0
            full = {}
            for name, allowance in buckets.items():
                burst = max(1, allowance.attempts // self._share)
                every = allowance.seconds_each * self._share
                full[name] = max(self._full_at.get(name, now), now) + every
                wait = max(wait, full[name] - now - burst * every)
                longest = max(longest, full[name] - now)
            if wait <= 0:
                for name, time_ in full.items():
                    self._full_at[name] = time_
                    self._full_at.move_to_end(name)
                while len(self._full_at) > MOST_LOCAL:
                    self._full_at.popitem(last=False)
            return Taken(wait, longest)

    def give_back(self, address: str, seconds_each: float, account: str) -> None:
        """Give one attempt back to the first bucket, and fill the second."""
        with self._lock:
            if address in self._full_at:
                self._full_at[address] -= seconds_each * self._share
            self._full_at.pop(account, None)
