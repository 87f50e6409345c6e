"""Publishes the jobs that need a message: due ones, and those whose message was lost."""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from promptstack.config.names import Queue
from promptstack.repositories.jobs.outbox import RESTARTED_SECONDS
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import JobState
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.progress import ProgressService
from promptstack.services.jobs.publishing import BrokerUnavailable, JobMessage, Publisher
from promptstack.services.maintenance.liveness import MOST_CHANGED, Liveness
from promptstack.services.maintenance.rate_limited_jobs import RateLimitedJobs
from promptstack.services.sharing.bulk_jobs import BulkJobs

logger = logging.getLogger(__name__)

BATCH = 500
"""Messages that leave together, of one short transaction."""
ROUNDS = 4
STEP_SECONDS = 5.0
"""After this long no other batch begins: the next round goes on."""
PATIENCE_SECONDS = 10.0
"""How long a job may stay queued after its message was sent, once its queue is empty."""
STATEMENT_SECONDS = 10.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""


class Outbox:
    """The messages that the ledger owes the broker."""

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: ProgressService,
        *,
        rate_limited: RateLimitedJobs,
        bulk_jobs: BulkJobs,
        liveness: Liveness,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._progress = progress
        self._rate_limited = rate_limited
        self._bulk_jobs = bulk_jobs
        self._liveness = liveness
        self._timer = timer
        self._ended: deque[JobRef] = deque(maxlen=MOST_CHANGED)
        """Jobs that ended in no worker's hands, whose messages have still to be sent."""

    def publish(self) -> int:
        """Show what liveness has changed and publish what is due. Returns how many jobs were."""
        changed = self._liveness.take_changed()
        self._ended.extend(job for job in changed if job.state != JobState.QUEUED)
        if changed:
            self._progress.rebuild([job.id for job in changed])
        try:
            self._publish_ended()
            return self._publish_due()
        except BrokerUnavailable as error:
            logger.warning("jobs that are due wait for the broker: %s", error)
            return 0

    def _publish_ended(self) -> None:
        """Let AsyncResult and Flower say so: a message does nothing else for a job that ended."""
        if self._ended:
            self._publisher.publish_all(list(map(JobMessage.of, self._ended)))
            self._ended.clear()

    def _publish_untold(self) -> None:
        """Let another service's Celery be told of its jobs' ends, by a message that does no more.

        Its worker died, or they ended in no worker's hands.
        """
        with self._ledger.transaction() as unit:
            jobs = unit.celery_messages.untold()
        self._publisher.publish_all(list(map(JobMessage.of, jobs)))

    def _publish_due(self) -> int:
        began = self._timer()
        epoch = self._publisher.epoch()
        with self._ledger.statement() as statement:
            signs = statement.signs.of_messages(epoch, PATIENCE_SECONDS, within=STATEMENT_SECONDS)
        if signs.held:
            self._bulk_jobs.give_out([Queue(queue) for queue in signs.held])
        if signs.untold:
            self._publish_untold()
        called_back = self._rate_limited.call_back() if signs.rate_limited else 0
        uptime = self._publisher.uptime() if signs.sent else None
        is_restarted = uptime is not None and uptime <= RESTARTED_SECONDS
        idle = self._idle(signs.old)
        published = 0
        if signs.due or called_back or is_restarted or idle:
            for _ in range(ROUNDS):
                batch = self._publish_batch(epoch, uptime, idle)
                published += batch
                if batch < BATCH or self._timer() - began > STEP_SECONDS:
                    break
                idle = self._idle(signs.old)
        return published

    def _idle(self, queues: Sequence[str]) -> list[Queue]:
        """Return those of the queues in which nothing waits: what was sent to them is gone."""
        return [queue for queue in map(Queue, queues) if self._publisher.waiting(queue) == 0]

    def _publish_batch(self, epoch: str, uptime: float | None, idle: Sequence[Queue]) -> int:
        # Marked first: of two workers, one publishes a job. If this process dies before it has
        # published, messages that are taken later tell.
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("reconciler"):
                return 0
            jobs = unit.outbox.take_unpublished(
                epoch, idle_queues=idle, patience=PATIENCE_SECONDS, limit=BATCH, uptime=uptime
            )
        try:
            self._publisher.publish_all([JobMessage.of(job) for job in jobs])
        except BrokerUnavailable:
            # Some may have left: a second message for a job does nothing.
            with self._ledger.transaction() as unit:
                unit.outbox.mark_unpublished([job.id for job in jobs])
            raise
        return len(jobs)
