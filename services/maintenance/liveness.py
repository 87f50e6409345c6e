"""Frees the jobs of dead workers and ends overdue ones, at a pace that no other step can slow down.

It has a thread and a database connection of its own in every worker. Slow steps, such as sending
messages, belong to the reconciler. If this waited for them, its rounds would come late, which looks
like an outage of the ledger, and during an outage no worker counts as dead.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.maintenance.heartbeat_timeout import blind_spans, silence_of_the_dead

logger = logging.getLogger(__name__)

LOCK = "liveness"
STATEMENT_SECONDS = 4.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""
STEP_SECONDS = 2.0
"""After this long a step begins no other batch: the next round goes on with it."""
BATCH = 200
"""Jobs freed or ended in one transaction."""
MOST_CHANGED = 10_000
"""Changed jobs that are kept until they are shown; of more, Redis is told when somebody asks."""


@dataclass(frozen=True)
class Proof:
    """How long a worker must have been silent at a moment to count as dead, in seconds."""

    silence: float
    at: float
    """By the ledger's clock."""


class Liveness:
    """Runs each second in every worker; a lock lets one at a time do it."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        worker_lost_seconds: float,
        clock: Callable[[UnitOfWork], datetime] = UnitOfWork.now,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """Do nothing yet; `clock` is the ledger's, `timer` bounds how long a round works."""
        self._ledger = ledger
        self._worker_lost_seconds = worker_lost_seconds
        # A worker may freeze while it has a lock. The lock must be free again before the others
        # take the pause for an outage of the ledger.
        self._idle_seconds = max(1.0, worker_lost_seconds / 4)
        self._clock = clock
        self._timer = timer
        self._changed: deque[JobRef] = deque(maxlen=MOST_CHANGED)

    def run_once(self) -> None:
        """Free what dead workers held, then end what is overdue.

        Raises `TransientLedgerError`.
        """
        proof = self._watch()
        if proof is not None:
            for job in self._in_batches(lambda unit: self._free(unit, proof)):
                logger.warning("job %s was freed: its worker died", job.id)
        self._in_batches(lambda unit: unit.maintenance.expire_overdue(BATCH))

    def take_changed(self) -> list[JobRef]:
        """The jobs that were freed or ended since this was asked: to be shown, and published."""
        changed = []
        while self._changed:
            changed.append(self._changed.popleft())
        return changed

    def _free(self, unit: UnitOfWork, proof: Proof) -> Sequence[JobRef]:
        # The ledger may have hung since it was watched.
        since = max(0.0, self._clock(unit).timestamp() - proof.at)
        return unit.maintenance.free_lost(proof.silence + since, BATCH)

    def _in_batches(self, step: Callable[[UnitOfWork], Sequence[JobRef]]) -> list[JobRef]:
        """Do a step in short transactions until nothing is left, or its time is over."""
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
            if len(batch) < BATCH or self._timer() - began > STEP_SECONDS:
                return done

    def _watch(self) -> Proof | None:
        """Note that the ledger is there; the silence that proves a worker's death, if any does.

        Apart from the rest, and by all workers: the rest may take longer.
        """
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS, idle=self._idle_seconds)
            if not unit.try_lock("watch"):
                return None
            now = self._clock(unit).timestamp()
            last_round, blind = unit.maintenance.last_watch()
            blind = blind_spans(blind, last_round, now, self._worker_lost_seconds / 2)
            unit.maintenance.note_watch(now, blind)
            silence = silence_of_the_dead(blind, now, self._worker_lost_seconds)
            return None if silence is None else Proof(silence, now)
