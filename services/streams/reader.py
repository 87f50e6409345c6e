"""Reads texts as they are produced, for any number of jobs at once."""

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import RedisError

from promptstack.config.names import TEXT_KEY
from promptstack.services.circuit_breaker import REST_SECONDS, CircuitBreaker
from promptstack.services.streams.pieces import Entry, Piece, Position, from_ledger, read_entries

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 1_000
"""Entries of one job that are read together."""
LONGEST_BLOCK = 1.0
"""Seconds; a connection to Redis is given up after two."""


class TextStreams:
    """The texts of jobs that asked for a stream.

    Redis being away costs the view: nothing comes then, and the ledger has the text in the end.
    """

    def __init__(self, redis: Redis, async_redis: AsyncRedis | None = None) -> None:
        """Take a second client for `aread`, which belongs to the loop that awaits it."""
        self._redis = redis
        self._async_redis = async_redis
        self._circuit = CircuitBreaker()

    def read(
        self, positions: Mapping[UUID, str], block_seconds: float = 0.0
    ) -> dict[UUID, list[Piece]]:
        """Return the pieces after these positions, by job; "0" is a text's beginning.

        Where there are none it waits for the first one, for `block_seconds` at most. After an `end`
        ask the ledger how the job stands; `rest` has what may be missing of its text. Raises
        `InvalidInput` for a position that nobody was told.
        """
        after = _Reading(positions)
        until = time.monotonic() + block_seconds
        while True:
            left = until - time.monotonic()
            if self._circuit.is_open():
                time.sleep(max(0.0, min(left, REST_SECONDS)))
            else:
                try:
                    found = after.pieces(self._redis.xread(**after.command(left)))
                except (RedisError, OSError) as error:
                    self._rest(error)
                else:
                    self._circuit.reset()
                    if found:
                        return found
            if time.monotonic() >= until:
                return {}

    async def aread(
        self, positions: Mapping[UUID, str], block_seconds: float = 0.0
    ) -> dict[UUID, list[Piece]]:
        """The same on an event loop. It may be cancelled."""
        reader = self._async_redis
        if reader is None:
            raise TypeError("These texts are read by threads only.")
        after = _Reading(positions)
        until = time.monotonic() + block_seconds
        while True:
            left = until - time.monotonic()
            if self._circuit.is_open():
                await asyncio.sleep(max(0.0, min(left, REST_SECONDS)))
            else:
                try:
                    found = after.pieces(await reader.xread(**after.command(left)))
                except (RedisError, OSError) as error:
                    self._rest(error)
                else:
                    self._circuit.reset()
                    if found:
                        return found
            if time.monotonic() >= until:
                return {}

    def rest(self, job_id: UUID, position: str, text: str, attempt: int) -> list[Piece]:
        """What a reader at `position` lacks of a job that has ended with `text`, up to the end.

        Where the stream does not show all of it, that is a restart and the whole text.
        """
        at = Position.parse(position)
        try:
            found: Any = self._redis.xrange(_key(job_id), "-", "+")
        except (RedisError, OSError) as error:
            self._rest(error)
            found = []
        if found and _is_end(found[-1], text, attempt):
            end = Position.parse(found[-1][0])
            if at >= end:
                return []
            pieces = list(read_entries(at, [one for one in found if Position.parse(one[0]) > at]))
            if pieces[-1].position == str(end):
                return pieces
        return list(from_ledger(at, text, attempt))

    def _rest(self, error: Exception) -> None:
        if self._circuit.trip():
            logger.warning("texts are not shown: Redis is away (%s)", type(error).__name__)


def _key(job_id: UUID) -> str:
    return TEXT_KEY.format(id=job_id)


def _is_end(entry: Entry, text: str, attempt: int) -> bool:
    """Whether this entry ends this text of this attempt."""
    name, fields = entry
    return fields.get("length") == str(len(text)) and Position.parse(name).attempt == attempt


class _Reading:
    """One question for the pieces after some positions."""

    def __init__(self, positions: Mapping[UUID, str]) -> None:
        self._at = {one: Position.parse(position) for one, position in positions.items()}
        self._ids = {_key(one): one for one in positions}

    def command(self, seconds: float) -> dict[str, Any]:
        """The arguments of XREAD."""
        block = int(1_000 * min(seconds, LONGEST_BLOCK))
        return {
            "streams": {_key(one): str(at) for one, at in self._at.items()},
            "count": MOST_AT_ONCE,
            "block": block if block > 0 else None,
        }

    def pieces(self, answer: Any) -> dict[UUID, list[Piece]]:
        """What an answer to it says."""
        return {one: pieces for one, pieces in self._read(answer) if pieces}

    def _read(self, answer: Any) -> Iterator[tuple[UUID, list[Piece]]]:
        for key, entries in answer.items() if isinstance(answer, dict) else answer or ():
            one = self._ids[key]
            # RESP3 has one more list around them.
            flat = entries[0] if entries and isinstance(entries[0], list) else entries
            yield one, list(read_entries(self._at[one], flat))
