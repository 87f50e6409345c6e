"""How many HTTP requests a minute an API key may send."""

import math
from dataclasses import dataclass

from redis import Redis

from promptstack.config.names import KEY_REQUESTS_KEY
from promptstack.services.access.caller import Caller
from promptstack.services.access.errors import TooManyRequests
from promptstack.services.access.rate_buckets import Allowance, RateBuckets


@dataclass(frozen=True)
class RequestsLeft:
    """What is left of a key's requests."""

    limit: int
    """A minute."""
    remaining: int
    reset_seconds: float
    """Until all of them are there again."""


class RequestsUsedUp(TooManyRequests):
    """The API key has sent all requests that it may send for now."""

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        retry_after: float | None = None,
        left: RequestsLeft | None = None,
    ) -> None:
        """Take what is left, which answers say in their headers."""
        super().__init__(message, detail=detail, retry_after=retry_after)
        self.left = left


class RequestLimits:
    """Counts the requests of keys that have a limit, over all processes."""

    def __init__(self, redis: Redis) -> None:
        self._buckets = RateBuckets(redis, "requests of API keys")

    def take(self, caller: Caller) -> RequestsLeft | None:
        """Count a request. Returns what is left, where there is a limit.

        Raises `RequestsUsedUp`, which says how long to wait.
        """
        most = caller.requests_a_minute
        if most is None or caller.key_id is None:
            return None
        # A client that was quiet may send them all at once.
        allowance = Allowance(most, 60 / most)
        taken = self._buckets.take({KEY_REQUESTS_KEY.format(id=caller.key_id): allowance})
        if taken.wait > 0:
            seconds = math.ceil(taken.wait)
            raise RequestsUsedUp(
                f"This API key may send {most} requests a minute, and has. "
                f"Try again in {seconds} s.",
                retry_after=seconds,
                # `full_in` counts the one that was not taken, too.
                left=RequestsLeft(most, 0, taken.full_in - allowance.seconds_each),
            )
        left = most - math.ceil(taken.full_in / allowance.seconds_each)
        return RequestsLeft(most, max(0, left), taken.full_in)
