"""A worker's heartbeat, and its check of the jobs that it still runs."""

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
"""Longest wait for one statement: well below the heartbeat timeout."""


class Heartbeat:
    """Records that this worker is alive and finds out which of its jobs were taken from it."""

    def __init__(
        self,
        ledger: Ledger,
        active_jobs: ActiveJobs,
        worker_id: UUID,
        *,
        providers: Sequence[str],
        lost_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `lost_seconds`, the heartbeat timeout, and `providers`.

        These are the providers across a network that this worker has a key or an address for.
        """
        self._providers = providers
        self._ledger = ledger
        self._active_jobs = active_jobs
        self._worker_id = worker_id
        self._lost_seconds = lost_seconds
        self._clock = clock
        self._beat_at = -math.inf
        self._live_workers = 1

    def beat(self) -> None:
        """Record a heartbeat and look after the jobs. Raises `TransientLedgerError`."""
        now = self._clock()
        claimed = self._active_jobs.claimed()
        with self._ledger.statement() as statement:
            self._live_workers = statement.heartbeats.beat(
                self._worker_id,
                socket.gethostname(),
                os.getpid(),
                providers=self._providers,
                lost_seconds=self._lost_seconds,
                within=STATEMENT_SECONDS,
            )
        self._beat_at = now
        # In a transaction of its own: a locked table of jobs must not stop the heartbeat.
        with self._ledger.statement() as statement:
            recorded = statement.heartbeats.running_of(self._worker_id, within=STATEMENT_SECONDS)
        # The ledger says that we run it, and we don't: it was away when the job ended.
        if not_held := self._active_jobs.not_held(recorded):
            with self._ledger.transaction() as unit:
                unit.limit_statements(STATEMENT_SECONDS)
                for job_id, attempt in not_held:
                    unit.steps.release(job_id, attempt)
        for job_id in self._active_jobs.cancel_lost(claimed, recorded):
            logger.info("job %s was taken from this worker; its call is closed", job_id)

    def is_late(self) -> bool:
        """Whether half the time has passed after which this worker counts as dead."""
        return self._clock() - self._beat_at > self._lost_seconds / 2

    def live_workers(self) -> int:
        """How many workers were alive at the last heartbeat, this one included."""
        return self._live_workers

    def leave(self) -> None:
        """Remove this worker from the ledger."""
        with self._ledger.transaction() as unit:
            unit.workers.leave(self._worker_id)
