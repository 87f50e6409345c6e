"""Where each run stands: read from Redis, and from the ledger where Redis does not know."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated, Any
from uuid import UUID

from pydantic import BeforeValidator
from redis import Redis

from promptstack.config.names import RUN_KEY
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.redis_view import RedisView
from promptstack.services.runs.views import known_cost
from promptstack.services.validation.ids import read_id

SHOW_SECONDS = 0.25
"""Between two views of a running run from one process."""
THROTTLED_RUNS = 1_000
"""Runs whose last view is remembered."""


def _or_none(text: object) -> object:
    return None if text == "None" else text


@dataclass(frozen=True)
class RunSnapshot:
    """Where a run stands."""

    run_id: UUID
    state: RunState
    total: int
    succeeded: int
    failed: int
    reused: int
    calls: int
    tokens: int
    cost_usd: Annotated[float | None, BeforeValidator(_or_none)]
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
    def of(cls, run: Run, workers: int, now: float) -> "RunSnapshot":
        """Read it off the ledger's row."""
        cost = known_cost(run)
        own: dict[str, Any] = {
            "run_id": run.id,
            "state": RunState(run.state),
            "tokens": run.input_tokens + run.output_tokens,
            "cost_usd": None if cost is None else float(cost),
            "workers": workers,
            "updated_at": now,
        }
        same = {one.name: getattr(run, one.name) for one in fields(cls) if one.name not in own}
        return cls(**own, **same)


class RunProgress:
    """Writes and reads snapshots of runs."""

    def __init__(
        self,
        redis: "Redis",
        ledger: Ledger,
        *,
        ttl_seconds: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._view = RedisView(
            redis, RunSnapshot, RUN_KEY, ttl_seconds=ttl_seconds, with_events=True, clock=clock
        )
        self._lock = threading.Lock()
        self._shown_at: dict[UUID, float] = {}

    def show(self, run: Run) -> None:
        """Show a running run, at most four times a second."""
        now = self._clock()
        with self._lock:
            if now - self._shown_at.get(run.id, 0.0) < SHOW_SECONDS:
                return
            self._shown_at[run.id] = now
            if len(self._shown_at) > THROTTLED_RUNS:
                self._shown_at.clear()
        self.publish(run)

    def publish(self, run: Run) -> RunSnapshot:
        """Show where a run stands. Redis or the ledger being away costs the view, not the run."""
        workers = 0
        if not RunState(run.state).is_final:
            # The caller has just stored results; an error here must not hide that.
            with suppress(TransientLedgerError), self._ledger.transaction() as unit:
                workers = unit.runs.count_workers(run.id)
        snapshot = RunSnapshot.of(run, workers, self._clock())
        self._view.write({run.id: snapshot})
        return snapshot

    def read(self, run_id: UUID | str) -> RunSnapshot | None:
        """Return where a run stands: from Redis, or from the ledger if that is missing or old."""
        run_id = read_id(run_id, "run")
        shown = self._view.read([run_id]).get(run_id)
        if shown is not None and not shown.state.is_final:
            return shown
        return self.rebuild(run_id)

    def read_all(self, run_ids: Sequence[UUID]) -> dict[UUID, RunSnapshot]:
        """Return where these runs stand, read as one is. Those that don't exist are left out."""
        shown = self._view.read(run_ids)
        rebuilt = [self.rebuild(one) for one in run_ids if one not in shown]
        return shown | {run.run_id: run for run in rebuilt if run is not None}

    def rebuild(self, run_id: UUID) -> RunSnapshot | None:
        """Show what the ledger says. None if it has no such run."""
        with self._ledger.transaction() as unit:
            run = unit.runs.get(run_id)
        return None if run is None else self.publish(run)
