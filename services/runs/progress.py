"""Where each run stands, in Redis for all to watch. Only a cache: the ledger can rebuild it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import RUN_KEY
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.runs.models import Run, RunState
from promptstack.repositories.session import Ledger
from promptstack.services.circuit_breaker import CircuitBreaker
from promptstack.services.runs.views import known_cost

logger = logging.getLogger(__name__)

SHOW_SECONDS = 0.25
"""Between two views of a running run from one process."""
STALE_SECONDS = 5.0
"""An older view is checked against the ledger."""
EVENTS_KEPT = 1_000
COUNTS = ("total", "succeeded", "failed", "reused", "calls", "tokens", "unknown_cost")
# A view that is older than what is shown is passed over: workers show the same run at once.
SHOW = """
local known = tonumber(redis.call('HGET', KEYS[1], 'version') or '-1')
if tonumber(ARGV[2]) < known then return 0 end
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
"""


@dataclass(frozen=True)
class RunStanding:
    """Where a run stands."""

    run_id: UUID
    state: RunState
    total: int
    succeeded: int
    failed: int
    reused: int
    calls: int
    tokens: int
    cost_usd: float | None
    """As in `RunView`."""
    unknown_cost: int
    limiter_wait_seconds: float
    """Of all its calls together."""
    workers: int
    version: int
    updated_at: float
    """Unix time."""

    @property
    def done(self) -> int:
        """Items that have ended."""
        return self.succeeded + self.failed

    @classmethod
    def of(cls, run: Run, workers: int, now: float) -> "RunStanding":
        """Read it off the ledger's row."""
        return cls(
            run_id=run.id,
            state=RunState(run.state),
            total=run.total,
            succeeded=run.succeeded,
            failed=run.failed,
            reused=run.reused,
            calls=run.calls,
            tokens=run.input_tokens + run.output_tokens,
            cost_usd=None if (cost := known_cost(run)) is None else float(cost),
            unknown_cost=run.unknown_cost,
            limiter_wait_seconds=run.limiter_wait_seconds,
            workers=workers,
            version=run.version,
            updated_at=now,
        )


class RunProgress:
    """Writes and reads where runs stand."""

    def __init__(
        self,
        redis: "Redis",
        ledger: Ledger,
        *,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._shown_at: dict[UUID, float] = {}
        self._circuit = CircuitBreaker(clock=clock)

    def show(self, run: Run) -> None:
        """Show a run that goes on, some times a second at most."""
        now = self._clock()
        with self._lock:
            if now - self._shown_at.get(run.id, 0.0) < SHOW_SECONDS:
                return
            self._shown_at[run.id] = now
            if len(self._shown_at) > EVENTS_KEPT:
                self._shown_at.clear()
        self.publish(run)

    def publish(self, run: Run) -> RunStanding:
        """Show where a run stands. Redis or the ledger being away costs the view, not the run."""
        workers = 0
        if not RunState(run.state).is_final:
            # Whoever shows a run has just stored something, which must not look undone.
            with suppress(TransientLedgerError), self._ledger.transaction() as unit:
                workers = unit.runs.count_workers(run.id)
        standing = RunStanding.of(run, workers, self._clock())
        self._write(standing)
        return standing

    def read(self, run_id: UUID) -> RunStanding | None:
        """Where a run stands; from the ledger where Redis doesn't know, or not lately."""
        shown = self._read(run_id)
        if shown is not None:
            is_fresh = self._clock() - shown.updated_at < STALE_SECONDS
            if is_fresh and not shown.state.is_final:
                return shown
        return self.rebuild(run_id)

    def rebuild(self, run_id: UUID) -> RunStanding | None:
        """Show anew what the ledger says; None where it knows no such run."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        return None if run is None else self.publish(run)

    def _write(self, standing: RunStanding) -> None:
        if self._circuit.is_open():
            return
        key = RUN_KEY.format(run_id=standing.run_id)
        fields = [str(part) for pair in vars(standing).items() for part in pair]
        try:
            self._redis.eval(
                SHOW,
                2,
                key,
                f"{key}:events",
                str(self._ttl_seconds),
                str(standing.version),
                str(EVENTS_KEPT),
                *fields,
            )
        except (RedisError, OSError) as error:
            self._rest(error)

    def _read(self, run_id: UUID) -> RunStanding | None:
        if self._circuit.is_open():
            return None
        try:
            fields: Any = self._redis.hgetall(RUN_KEY.format(run_id=run_id))
        except (RedisError, OSError) as error:
            self._rest(error)
            return None
        return _parse(fields) if fields else None

    def _rest(self, error: Exception) -> None:
        logger.warning("runs are not shown in Redis now (%s)", type(error).__name__)
        self._circuit.trip()


def _parse(fields: Mapping[str, str]) -> RunStanding | None:
    """Read what `publish` wrote; None for what another version wrote."""
    try:
        return RunStanding(
            run_id=UUID(fields["run_id"]),
            state=RunState(fields["state"]),
            **{name: int(fields[name]) for name in COUNTS},
            cost_usd=None if fields["cost_usd"] == "None" else float(fields["cost_usd"]),
            limiter_wait_seconds=float(fields["limiter_wait_seconds"]),
            workers=int(fields["workers"]),
            version=int(fields["version"]),
            updated_at=float(fields["updated_at"]),
        )
    except (KeyError, ValueError):
        return None
