"""Puts right what messages, brokers and workers that vanished left behind."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from promptstack.config.names import Queue
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import JobState
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.progress import ProgressService
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage, Publisher
from promptstack.services.maintenance.liveness import MOST_CHANGED, Liveness
from promptstack.services.maintenance.rate_limited_jobs import RateLimitedJobs
from promptstack.services.runs.maintenance import RunMaintenance

logger = logging.getLogger(__name__)

BATCH = 500
"""Messages that leave together, of one short transaction."""
ROUNDS = 4
STEP_SECONDS = 5.0
"""After this long a step begins no other batch: the next round goes on with it."""

PATIENCE_SECONDS = 10.0
"""How long a job may stay queued after its message was sent, once its queue is empty."""

STATEMENT_SECONDS = 10.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""

FORGET_WORKERS_SECONDS = 3_600.0


@dataclass(frozen=True)
class Retention:
    """How long what is over is kept, in seconds; 0 is for ever."""

    jobs_seconds: float
    attempts_seconds: float


FOR_EVER = Retention(0.0, 0.0)


class Reconciler:
    """Its steps run in every worker, each second, and each in a thread of its own there.

    Of the steps that two could do twice or that are long, a lock lets one at a time do each; the
    others change only what is still as they found it.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: ProgressService,
        waiting: RateLimitedJobs,
        runs: RunMaintenance,
        *,
        liveness: Liveness,
        retention: Retention = FOR_EVER,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._progress = progress
        self._waiting = waiting
        self._runs = runs
        self._liveness = liveness
        self._retention = retention
        self._timer = timer
        self._ended: deque[JobRef] = deque(maxlen=MOST_CHANGED)
        """Jobs that ended in no worker's hands, whose messages have still to be sent."""

    def run_once(self) -> int:
        """Do every step once, one after the other; how many jobs were published.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        self._liveness.run_once()
        published = self.publish()
        self.tend()
        return published

    def publish(self) -> int:
        """Show what liveness has changed, and publish what is due; how many jobs were published."""
        changed = self._liveness.take_changed()
        self._ended.extend(job for job in changed if not _waits(job))
        if changed:
            self._progress.rebuild([job.id for job in changed])
        self._waiting.call_back()
        try:
            self._publish_ended()
            return self._publish_due()
        except BrokerUnavailable as error:
            logger.warning("jobs that are due wait for the broker: %s", error)
            return 0

    def tend(self) -> None:
        """Give out shards, end runs, and delete what is old."""
        self._forget()
        self._prune()
        # Last: whatever is wrong with a run must not keep the rest from being done.
        self._runs.run_once(self._retention.jobs_seconds)

    def _forget(self) -> None:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if unit.try_lock("forget"):
                unit.maintenance.lose_calls(unit.workers.forget_dead(FORGET_WORKERS_SECONDS))
                unit.reservations.forget_idle()

    def _prune(self) -> None:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("prune"):
                return
            if self._retention.jobs_seconds:
                unit.maintenance.prune_jobs(self._retention.jobs_seconds)
            if self._retention.attempts_seconds:
                unit.maintenance.prune_attempts(self._retention.attempts_seconds)

    def _publish_ended(self) -> None:
        """Let AsyncResult and Flower say so: a message does nothing else for a job that ended."""
        if self._ended:
            self._publisher.publish_all(list(map(JobMessage.of, self._ended)))
            self._ended.clear()

    def _publish_due(self) -> int:
        began = self._timer()
        epoch, uptime = self._publisher.epoch(), self._publisher.uptime()
        published = 0
        for _ in range(ROUNDS):
            batch = self._publish_batch(epoch, uptime)
            published += batch
            if batch < BATCH or self._timer() - began > STEP_SECONDS:
                break
        return published

    def _publish_batch(self, epoch: str, uptime: float | None) -> int:
        idle = [queue for queue in Queue if self._publisher.waiting(queue) == 0]
        # Marked first: when two reconcilers meet, each job is published by one of them, and if this
        # process dies before it has published, the messages that are taken later tell.
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("reconciler"):
                return 0
            jobs: Sequence[JobRef] = unit.outbox.take_unpublished(
                epoch,
                idle_queues=idle,
                patience=PATIENCE_SECONDS,
                limit=BATCH,
                uptime=uptime,
            )
        try:
            self._publisher.publish_all([JobMessage.of(job) for job in jobs])
        except BrokerUnavailable:
            # Some may have left: a second message for a job does nothing.
            with self._ledger.transaction() as unit:
                unit.outbox.mark_unpublished([job.id for job in jobs])
            raise
        return len(jobs)


def _waits(job: JobRef) -> bool:
    return job.state == JobState.QUEUED
