"""A worker's sign of life, and its check of what it still holds."""

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from uuid import UUID

from promptstack.repositories.session import Ledger
from promptstack.services.execution.active_jobs import ActiveJobs

logger = logging.getLogger(__name__)

STATEMENT_SECONDS = 4.0
"""Longest wait for one statement: a heartbeat must not hang as long as a worker may be silent."""


class Heartbeat:
    """Says that this worker is alive and sees which of its jobs were taken from it."""

    def __init__(
        self,
        ledger: Ledger,
        running: ActiveJobs,
        worker_id: UUID,
        *,
        providers: Sequence[str],
        lost_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Beat nothing yet; `lost_seconds` is the heartbeat timeout.

        `providers` are those across a network that it has a key or an address for.
        """
        self._providers = providers
        self._ledger = ledger
        self._running = running
        self._worker_id = worker_id
        self._lost_seconds = lost_seconds
        self._clock = clock
        self._beat_at = -math.inf
        self._live_workers = 1

    def beat(self) -> None:
        """Do both once. Raises `TransientLedgerError`."""
        now = self._clock()
        claimed = self._running.claimed()
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            unit.workers.beat(
                self._worker_id, socket.gethostname(), os.getpid(), providers=self._providers
            )
            self._live_workers = unit.workers.count_alive(self._lost_seconds)
        self._beat_at = now
        # Apart: while a migration or a person has the table of jobs locked, workers live on.
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            recorded = unit.jobs.running_of(self._worker_id)
            # Recorded as ours but not in hand: the database was away when we let go of it.
            for job_id, attempt in recorded.items():
                if not self._running.holds(job_id, attempt):
                    unit.steps.release(job_id, attempt)
        for job_id in self._running.cancel_lost(claimed, recorded):
            logger.info("job %s was taken from this worker; its call is closed", job_id)

    def is_late(self) -> bool:
        """Whether half the time has passed after which this worker counts as dead."""
        return self._clock() - self._beat_at > self._lost_seconds / 2

    def live_workers(self) -> int:
        """How many workers were alive at the last beat, this one included."""
        return self._live_workers

    def leave(self) -> None:
        """Say that this worker is gone."""
        with self._ledger.transaction() as unit:
            unit.workers.leave(self._worker_id)
