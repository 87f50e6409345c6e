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
local wait, full = 0, {}
for i, key in ipairs(KEYS) do
  local burst, every = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  full[i] = math.max(tonumber(redis.call('GET', key) or now), now) + every
  wait = math.max(wait, full[i] - now - burst * every)
end
if wait > 0 then return wait end
for i, key in ipairs(KEYS) do
  redis.call('SET', key, string.format('%.0f', full[i]), 'PX', math.ceil((full[i] - now) / 1000))
end
return 0
"""
"""Takes one attempt from all of these buckets, or from none, and says how long to wait then. A
bucket is the time at which it is full again, in microseconds."""


@dataclass(frozen=True)
class Allowance:
    """How many attempts at once, and how soon there is another one."""

    attempts: int
    seconds_each: float


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

    def take(self, buckets: Mapping[str, Allowance]) -> float:
        """Take one from all of these, or from none. Returns the seconds to wait then, or 0."""
        wait = self._shared_wait(buckets)
        return self.local.take(buckets) if wait is None else wait

    def _shared_wait(self, buckets: Mapping[str, Allowance]) -> float | None:
        """The wait in seconds, 0 for a taken attempt; None while Redis is away."""
        if self._breaker.is_open():
            return None
        arguments = [
            number
            for each in buckets.values()
            for number in (each.attempts, math.ceil(each.seconds_each * 1_000_000))
        ]
        try:
            wait = float(self._take(keys=[*buckets], args=arguments))
        except RedisError as error:
            if self._breaker.trip():
                logger.warning(
                    "Redis is away (%s): %s are counted in each process",
                    type(error).__name__,
                    self._what,
                )
            return None
        self._breaker.reset()
        return wait / 1_000_000

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

    def take(self, buckets: Mapping[str, Allowance]) -> float:
        """Take one attempt from all, or from none. Returns how long to wait then."""
        with self._lock:
            now, wait = self._clock(), 0.0
            full = {}
            for name, allowance in buckets.items():
                burst = max(1, allowance.attempts // self._share)
                every = allowance.seconds_each * self._share
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
                self._full_at[address] -= seconds_each * self._share
            self._full_at.pop(account, None)
