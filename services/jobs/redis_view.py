"""Where jobs or runs stand, in Redis for all to watch. Only a cache: the ledger can rebuild it."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import TypeAdapter, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from promptstack.services.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)

STALE_SECONDS = 5.0
"""An older entry is checked against the ledger: its writer may have died, or Redis may have been
away when the job ended or was queued again."""
EVENTS_KEPT = 1_000
# Several workers show the same run. Of two versions the newer one stays. Who watches listens on a
# channel with the key's name; where the server lets us publish nothing, they look each second.
WRITE = """
local version = tonumber(ARGV[2])
if version and version < tonumber(redis.call('HGET', KEYS[1], 'version') or '-1') then return end
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('EXPIRE', KEYS[1], ARGV[1])
if KEYS[2] then
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 5))
  redis.call('EXPIRE', KEYS[2], ARGV[1])
end
redis.pcall('PUBLISH', KEYS[1], ARGV[4])
"""

Snapshot = TypeVar("Snapshot")


class RedisView(Generic[Snapshot]):
    """One hash a job or run, with the fields of a dataclass and the time of the last write.

    Each write is told on a channel with the hash's name: the `state`.
    Redis being away costs the view and nothing else.
    """

    def __init__(
        self,
        redis: "Redis",
        snapshot: type[Snapshot],
        key: str,
        *,
        ttl_seconds: int,
        with_events: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Take the hash's `key` with a place for the id; `with_events` adds a stream of changes."""
        self._redis = redis
        self._adapter = TypeAdapter(snapshot)
        self._key = key
        self._ttl_seconds = ttl_seconds
        self._with_events = with_events
        self._clock = clock
        self._circuit = CircuitBreaker(clock=clock)

    def write(self, snapshots: Mapping[UUID, Snapshot]) -> None:
        """Show snapshots, by their ids. One with an older `version` than is shown is left out."""
        if self._circuit.is_open():
            return
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for one, snapshot in snapshots.items():
                    fields = {"updated_at": self._clock(), **vars(snapshot)}
                    key = self._key.format(id=one)
                    keys = [key, f"{key}:events"] if self._with_events else [key]
                    pipeline.eval(
                        WRITE,
                        len(keys),
                        *keys,
                        str(self._ttl_seconds),
                        str(fields.get("version", "")),
                        str(EVENTS_KEPT),
                        str(fields["state"]),
                        *(str(part) for pair in fields.items() for part in pair),
                    )
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._rest(error)

    def read(self, ids: Sequence[UUID]) -> dict[UUID, Snapshot]:
        """Return what was shown in the last seconds; the ledger knows the others."""
        if self._circuit.is_open():
            return {}
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for one in ids:
                    pipeline.hgetall(self._key.format(id=one))
                entries = pipeline.execute()
        except (RedisError, OSError) as error:
            self._rest(error)
            return {}
        return dict(self._fresh(zip(ids, entries, strict=True)))

    def _fresh(
        self, entries: Iterable[tuple[UUID, dict[str, Any]]]
    ) -> Iterable[tuple[UUID, Snapshot]]:
        for one, fields in entries:
            if not fields or self._clock() - float(fields.get("updated_at", 0)) > STALE_SECONDS:
                continue
            try:
                yield one, self._adapter.validate_python(fields)
            except ValidationError:
                continue  # another version of this program wrote it

    def _rest(self, error: Exception) -> None:
        self._circuit.trip()
        logger.warning("progress is not shown: Redis is away (%s)", type(error).__name__)
