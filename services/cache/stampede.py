"""One computes, others wait: what a cached call does, over all threads and processes.

In a process, callers at the same time share one flight. Its leader alone asks Redis, where the
leaders of all processes meet: one has the lock and computes. Where it takes longer than others
wait, it may be dead: one of them takes the lock over and computes as well. The lock names both, and
the answer that comes first is kept. Only who is named there stores, and `delete` takes the lock
away: a value from before an invalidation is never put back.
"""

import logging
import secrets
import time
from dataclasses import dataclass
from typing import Any

from promptstack.config.logging import log_unexpected
from promptstack.services.cache.cache import Cache, locked_by, stored_as
from promptstack.services.cache.codec import NotCacheable, Unreadable
from promptstack.services.cache.flights import Flight, Found

logger = logging.getLogger(__name__)

LOOK = """
local value, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if value and left > tonumber(ARGV[3]) then return {value, left, 0} end
local holders = redis.call('GET', KEYS[2])
local age = tonumber(ARGV[4]) - redis.call('PTTL', KEYS[2])
if holders and age < tonumber(ARGV[2]) then return {value or '', left, 2} end
local before = holders and ',' .. string.sub(holders, 1, 67) or ''
redis.call('SET', KEYS[2], ARGV[1] .. before, 'PX', ARGV[4])
return {value or '', left, 1}
"""
"""Of those who computed before, the lock keeps the names of the last four."""
COMPUTE, WAIT = 1, 2
"""What LOOK says of a value that is missing or stale; a stale one comes with it."""
STORE = """
local holders = redis.call('GET', KEYS[2])
local place = holders and string.find(holders, ARGV[1], 1, true)
if not place then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
if ARGV[2] ~= '' or place == 1 then redis.call('DEL', KEYS[2]) end
return 1
"""
"""Who has no answer leaves the lock to who took it over."""
LOCK_MILLISECONDS = 60_000
"""An answer that takes longer isn't kept."""


@dataclass(frozen=True)
class Terms:
    """How long an answer is good, and how long others wait for who computes it."""

    expire: float
    stale: float
    """So long after that, it is taken while another one computes."""
    wait: float
    """So long others wait for who computes it. Then it counts as lost: one of them takes over, and
    others who have waited as long compute for themselves."""

    @property
    def kept_milliseconds(self) -> int:
        """How long Redis keeps an answer."""
        return int((self.expire + self.stale) * 1_000)


@dataclass(frozen=True)
class Lead:
    """The caller computes the answer, and hands it in."""

    token: str | None
    """None where Redis is away: then nobody else knows of it."""


class Busy:
    """Another process computes it."""


class Call:
    """One call of a cached function, on its way to an answer."""

    def __init__(self, cache: "Cache", key: str, terms: Terms) -> None:
        self.key = key
        self._cache = cache
        self._terms = terms
        self._flight: Flight | None = None
        """The one that this call leads."""
        self._began = time.monotonic()

    def look(self) -> Found | Lead | Flight | Busy:
        """What to do: take an answer, compute it, or wait for a flight or another process."""
        waited = time.monotonic() - self._began
        if self._flight is None:
            flight, is_mine = self._cache.flights.join_or_begin(self.key)
            if not is_mine:
                # Its leader may have waited for another process before it began to compute.
                return flight if waited < 2 * self._terms.wait else Lead(None)
            self._flight = flight
        try:
            found = self._ask()
        except BaseException:
            self._end(None)
            raise
        if isinstance(found, Busy) and waited >= self._terms.wait:
            return Lead(None)
        if isinstance(found, Found):
            self._end(found)
        return found

    def hand_in(self, lead: Lead, value: Any) -> None:
        """Keep what was computed, and let the others go on. Never raises."""
        try:
            text = self._cache.codec.dump(value)
        except NotCacheable as error:
            log_unexpected(logger, f"an answer of {self.key[:80]!r} can't be cached", error)
            return self.give_up(lead)
        if not self._cache.has_room(text):
            logger.warning("an answer of %r is too large to be cached", self.key[:80])
        is_good = lead.token is None or self._store(lead.token, text)
        return self._end(Found(text, time.monotonic()) if is_good else None)

    def give_up(self, lead: Lead) -> None:
        """Let another one compute. Never raises."""
        if lead.token is not None:
            self._store(lead.token, b"")
        self._end(None)

    def _end(self, found: Found | None) -> None:
        if self._flight is not None:
            self._cache.flights.end(self._flight, found)
            self._flight = None

    def _ask(self) -> Found | Lead | Busy:
        token = secrets.token_hex(8)
        lease, stale = int(self._terms.wait * 1_000), int(self._terms.stale * 1_000)
        keys = stored_as(self.key), locked_by(self.key)
        answer = self._cache.ask(
            lambda redis: redis.eval(LOOK, 2, *keys, token, lease, stale, LOCK_MILLISECONDS), None
        )
        if answer is None:
            return Lead(None)
        text, left, who = answer
        found = Found(text, time.monotonic() - (self._terms.kept_milliseconds - left) / 1_000)
        if who == COMPUTE:
            if self._is_readable(text):
                # It is stale; those who wait here take it, and later ones get it from Redis.
                self._end(found)
            return Lead(token)
        if self._is_readable(text):
            return found
        return Busy() if who == WAIT else Lead(None)

    def _is_readable(self, text: str) -> bool:
        """Whether there is an answer, and this version of the program can read it."""
        try:
            return bool(text) and (self._cache.codec.load(text), True)[1]
        except Unreadable:
            return False

    def _store(self, token: str, text: bytes) -> bool:
        keys = stored_as(self.key), locked_by(self.key)
        kept = text if self._cache.has_room(text) else b""
        values = token, kept, self._terms.kept_milliseconds
        return bool(self._cache.ask(lambda redis: redis.eval(STORE, 2, *keys, *values), True))
