"""How many HTTP requests a minute an API key may send."""

import math

from redis import Redis

from promptstack.config.names import KEY_REQUESTS_KEY
from promptstack.services.access.caller import Caller
from promptstack.services.access.errors import TooManyRequests
from promptstack.services.access.rate_buckets import Allowance, RateBuckets


class RequestLimits:
    """Counts the requests of keys that have a limit, over all processes."""

    def __init__(self, redis: Redis) -> None:
        self._buckets = RateBuckets(redis, "requests of API keys")

    def take(self, caller: Caller) -> None:
        """Count a request. Raises `TooManyRequests`, which says how long to wait."""
        most = caller.requests_a_minute
        if most is None or caller.key_id is None:
            return
        # A client that was quiet may send them all at once.
        allowance = Allowance(most, 60 / most)
        wait = self._buckets.take({KEY_REQUESTS_KEY.format(id=caller.key_id): allowance})
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyRequests(
                f"This API key may send {most} requests a minute, and has. "
                f"Try again in {seconds} s.",
                retry_after=seconds,
            )
