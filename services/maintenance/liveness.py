"""Frees the jobs of dead workers and ends overdue ones, at a pace that no other step can slow down.

It has a thread and a database connection of its own in every worker. If it waited for a slow step,
such as sending messages, its rounds would come late. That looks like an outage of the ledger, and
during an outage no worker counts as dead.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork

Span = tuple[float, float]
"""From and to, in seconds of the ledger's clock. Spans are in order and don't overlap."""

REMEMBERED_SECONDS = 600.0
"""No worker that was alive since is judged by older spans."""


def blind_spans(
    known: Sequence[Span], last_round: float | None, now: float, longest_gap: float
) -> list[Span]:
    """Add what nobody saw since the last round; forget what is long past."""
    if last_round is None or now < last_round:
        # Nobody has looked yet, or the clock was put back: what was seen before tells nothing.
        return [(-math.inf, now)]
    spans = [span for span in known if now - span[1] < REMEMBERED_SECONDS]
    return [*spans, (last_round, now)] if now - last_round >= longest_gap else spans


def heartbeat_timeout(spans: Sequence[Span], now: float, lost_seconds: float) -> float | None:
    """Return the silence that proves a death, in seconds; None where none does yet.

    Heartbeats could be sent during `lost_seconds` of it, and during a third of that since the last
    blind span: the living need a moment to find the ledger again.
    """
    if spans and now - spans[-1][1] < lost_seconds / 3:
        return None
    # Count back from now the time in which somebody looked.
    missing = lost_seconds
    seen_until = now
    for begin, end in reversed(spans):
        seen = seen_until - end
        if seen >= missing:
            break
        missing -= seen
        seen_until = begin
    timeout = now - (seen_until - missing)
    return timeout if math.isfinite(timeout) else None


logger = logging.getLogger(__name__)

LOCK = "liveness"
STATEMENT_SECONDS = 4.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""
STEP_SECONDS = 2.0
"""After this long no other batch begins: the next round goes on."""
BATCH = 200
"""Jobs freed or ended in one transaction."""
MOST_CHANGED = 10_000
"""Changed jobs kept until they are shown. Others are shown when somebody asks for them."""


class Watched(NamedTuple):
    """What a round saw, in seconds of the ledger's clock."""

    at: float
    timeout: float | None
    """How long a worker must be silent by then to count as dead; None where none does yet."""


class Liveness:
    """Runs each second in every worker. A lock lets one at a time do the work."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        worker_lost_seconds: float,
        clock: Callable[[UnitOfWork], datetime] = UnitOfWork.now,
        timer: Callable[[], float] = time.monotonic,
        batch: int = BATCH,
    ) -> None:
        """Take `clock`, which is the ledger's, and `timer`, which bounds how long a round works."""
        self._ledger = ledger
        self._worker_lost_seconds = worker_lost_seconds
        # A worker may freeze while it has a lock. The lock must be free again before the others
        # take the pause for an outage of the ledger.
        self._idle_seconds = max(1.0, worker_lost_seconds / 4)
        self._clock = clock
        self._timer = timer
        self._batch = batch
        self._changed: deque[JobRef] = deque(maxlen=MOST_CHANGED)

    def run_once(self) -> None:
        """Free what dead workers held, then end what is overdue.

        Raises `TransientLedgerError`.
        """
        at, timeout = self._watch()
        # In a transaction of its own: a locked table of jobs must not stop the watch.
        with self._ledger.statement() as statement:
            signs = statement.signs.of_liveness(self._worker_lost_seconds, within=STATEMENT_SECONDS)
        if signs.orphaned and timeout is not None:
            for job in self._in_batches(lambda unit: self._free(unit, at, timeout)):
                logger.warning("job %s was freed: its worker died", job.id)
        if signs.overdue:
            self._in_batches(lambda unit: unit.maintenance.expire_overdue(self._batch))

    def take_changed(self) -> list[JobRef]:
        """Return the jobs freed or ended since the last call, to be shown and published."""
        changed = []
        while self._changed:
            changed.append(self._changed.popleft())
        return changed

    def _free(self, unit: UnitOfWork, watched_at: float, timeout: float) -> Sequence[JobRef]:
        # The ledger may have hung since it was watched.
        since = max(0.0, self._clock(unit).timestamp() - watched_at)
        return unit.maintenance.free_lost(timeout + since, self._batch)

    def _in_batches(self, step: Callable[[UnitOfWork], Sequence[JobRef]]) -> list[JobRef]:
        """Do a step in short transactions until nothing is left or its time is over."""
        began = self._timer()
        done: list[JobRef] = []
        while True:
            with self._ledger.transaction() as unit:
                unit.limit_statements(STATEMENT_SECONDS, idle=self._idle_seconds)
                if not unit.try_lock(LOCK):
                    return done
                batch = step(unit)
            done += batch
            self._changed.extend(batch)
            if len(batch) < self._batch or self._timer() - began > STEP_SECONDS:
                return done

    def _watch(self) -> Watched:
        """Note that the ledger is there, in a transaction apart: the rest may take longer."""
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS, idle=self._idle_seconds)
            is_mine = unit.try_lock("watch")
            # Read under the lock: an earlier time than the last round's would look as if the
            # ledger's clock had been put back.
            now = self._clock(unit).timestamp()
            if not is_mine:
                return Watched(now, None)
            last_round, blind = unit.maintenance.last_watch()
            blind = blind_spans(blind, last_round, now, self._worker_lost_seconds / 2)
            unit.maintenance.note_watch(now, blind)
            return Watched(now, heartbeat_timeout(blind, now, self._worker_lost_seconds))
