"""How often a password may be tried: for each account, and from each address.

Each has a bucket of attempts that fills up again with time (GCRA). Redis keeps them for all
processes. While Redis is away each process has a share of its own: nobody is let in without a
limit, and nobody is locked out.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from redis import Redis

from promptstack.config.names import SIGN_IN_KEY
from promptstack.services.access.errors import TooManyAttempts
from promptstack.services.access.rate_buckets import Allowance, LocalBuckets, RateBuckets
from promptstack.services.access.signing import SigningKeys

GIVE_BACK = """
local full = tonumber(redis.call('GET', KEYS[1]) or 0) - ARGV[1]
local left = redis.call('PTTL', KEYS[1]) - math.ceil(ARGV[1] / 1000)
if left > 0 then
  redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', left)
else
  redis.call('DEL', KEYS[1])
end
return redis.call('DEL', KEYS[2])
"""
"""Gives one attempt back to the first bucket, and fills the second."""

ACCOUNT = Allowance(attempts=10, seconds_each=60)
ADDRESS = Allowance(attempts=50, seconds_each=10)
"""Many people may share one."""
TOLD = Allowance(attempts=1, seconds_each=60)
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
        self._buckets = RateBuckets(redis, "attempts to sign in", clock=clock)
        self._give_back = redis.register_script(GIVE_BACK)
        self._keys = keys
        self._allowances = (account, address)
        self._told = LocalBuckets(clock)

    def take(self, email: str, address: str, *, is_known: bool) -> Attempt:
        """Take an attempt. Raises `TooManyAttempts`, which says how long to wait.

        An address where the account's person has signed in before has a bucket of its own for that
        account: strangers who guess the password lock nobody out.
        """
        account = f"account:{email}:{address if is_known else ''}"
        attempt = Attempt(self._name(account), self._name(f"address:{_network(address)}"))
        buckets = dict(zip((attempt.account, attempt.address), self._allowances, strict=True))
        wait = self._buckets.take(buckets).wait
        if wait > 0:
            seconds = math.ceil(wait)
            raise TooManyAttempts(
                f"Too many passwords were tried. Try again in {seconds} s.",
                retry_after=seconds,
                is_news=self._told.take({attempt.address: TOLD}).wait <= 0,
            )
        return attempt

    def succeeded(self, attempt: Attempt) -> None:
        """Give the attempt back: it was no guess. The account begins anew."""
        seconds_each = self._allowances[1].seconds_each
        self._buckets.local.give_back(attempt.address, seconds_each, attempt.account)
        keys = [attempt.address, attempt.account]
        every = math.ceil(seconds_each * 1_000_000)
        self._buckets.run(lambda: self._give_back(keys=keys, args=[every]))

    def _name(self, bucket: str) -> str:
        """Redis learns no e-mail address."""
        return SIGN_IN_KEY.format(bucket=self._keys.sign(bucket)[:32])


def _network(address: str) -> str:
    """The addresses that one sender may have: in IPv6 that is a whole network."""
    try:
        read = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((read, 64), strict=False)) if read.version == 6 else str(read)
