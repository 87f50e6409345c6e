"""A cache in Redis. Where Redis is away, nothing is found there, and nobody fails."""

import logging
import math
from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import CACHE_KEY, CACHE_LOCK_KEY
from promptstack.services.cache.codec import Codec, Unreadable
from promptstack.services.cache.flights import Flights
from promptstack.services.cache.keys import shortened
from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

MAX_VALUE_BYTES = 1_000_000
"""A larger value isn't kept: Redis drops nothing when it is full, and jobs need it."""
MAX_EXPIRE_SECONDS = 86_400.0
SCANNED_AT_ONCE = 500
MISSING = object()
"""A default that tells a stored None from a miss."""


class Cache:
    """Values by their key, each for a time. All keys are under `promptstack:cache:`."""

    def __init__(
        self,
        redis: "Redis",
        codec: Codec | None = None,
        *,
        max_bytes: int = MAX_VALUE_BYTES,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        """Take the `codec`, which knows the classes of the values."""
        self.codec = codec or Codec()
        self.flights = Flights()
        self._redis = redis
        self._max_bytes = max_bytes
        self._breaker = breaker or CircuitBreaker()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, which may be None, or `default` if there is none."""
        text = self.ask(lambda redis: redis.get(stored_as(key)), None)
        if text is None:
            return default
        try:
            return self.codec.load(text)
        except Unreadable:
            return default

    def set(self, key: str, value: Any, expire: float) -> bool:
        """Keep a value for `expire` seconds; False where it isn't kept.

        That is where it is too large or Redis is away. Raises `NotCacheable` for a value of a type
        that would not come back, and `ValueError` for a time over a day.
        """
        text = self.codec.dump(value)
        milliseconds = int(checked_expire(expire) * 1_000)
        if not self.has_room(text):
            return False
        return bool(self.ask(lambda redis: redis.set(stored_as(key), text, px=milliseconds), False))

    def delete(self, key: str) -> bool:
        """Forget a value; what is computed for it right now isn't kept either.

        Returns whether it was there.
        """
        self.flights.forget(key)

        def unlink(redis: "Redis") -> int:
            with redis.pipeline(transaction=True) as pipeline:
                pipeline.unlink(stored_as(key))
                pipeline.unlink(locked_by(key))
                return int(pipeline.execute()[0])

        return bool(self.ask(unlink, 0))

    def invalidate_pattern(self, pattern: str) -> int:
        """Forget all values whose key matches, such as `usage:*`. Returns how many there were.

        In a pattern `*`, `?` and `[...]` mean what they do for files. Redis is asked in small
        steps (SCAN) and frees the memory aside (UNLINK), so that nobody else waits.
        """
        self.flights.forget_all()

        def unlink(redis: "Redis") -> int:
            # The locks first: who computes now would put the old value back.
            _unlink_all(redis, CACHE_LOCK_KEY.format(key=pattern))
            return _unlink_all(redis, CACHE_KEY.format(key=pattern))

        return int(self.ask(unlink, 0))

    def has_room(self, text: bytes) -> bool:
        """Whether a value of this size is kept."""
        return len(text) <= self._max_bytes

    def ask(self, question: Callable[["Redis"], Any], unknown: Any) -> Any:
        """Ask Redis; `unknown` where it is away. It is then left alone for a moment.

        It is logged once an outage, and not once a call.
        """
        if self._breaker.is_open():
            return unknown
        try:
            answer = question(self._redis)
        except (RedisError, OSError) as error:
            if self._breaker.trip():
                logger.warning("nothing is cached: Redis is away (%s)", type(error).__name__)
            return unknown
        self._breaker.reset()
        return answer


def stored_as(key: str) -> str:
    """Where Redis has a value."""
    return CACHE_KEY.format(key=shortened(key))


def locked_by(key: str) -> str:
    """Where Redis has the lock of who computes a value."""
    return CACHE_LOCK_KEY.format(key=shortened(key))


def checked_expire(seconds: float) -> float:
    """Return a time to keep a value, or raise `ValueError`."""
    if not (math.isfinite(seconds) and 0.001 <= seconds <= MAX_EXPIRE_SECONDS):
        raise ValueError(f"A value is cached for 0.001 to {MAX_EXPIRE_SECONDS:g} s, not {seconds}.")
    return seconds


def _unlink_all(redis: "Redis", pattern: str) -> int:
    count, found = 0, list[str]()
    for key in redis.scan_iter(match=pattern, count=SCANNED_AT_ONCE):
        found.append(key)
        if len(found) == SCANNED_AT_ONCE:
            count += int(redis.unlink(*found))
            found.clear()
    return count + (int(redis.unlink(*found)) if found else 0)
