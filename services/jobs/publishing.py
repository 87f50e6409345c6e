"""How services send jobs' messages without knowing what carries them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import Job, JobKind
from promptstack.repositories.session import Ledger

logger = logging.getLogger(__name__)

SLICE = 500
"""Messages sent before they are noted. The reconciler publishes again what isn't noted."""


class BrokerUnavailable(PromptStackError):
    """The message couldn't be sent; the job is in the ledger and is published later."""

    code = "BROKER_UNAVAILABLE"
    transient = True


@dataclass(frozen=True)
class JobMessage:
    """What a message says and what a monitor may show: never any content."""

    job_id: UUID
    kind: JobKind
    queue: Queue
    provider: str
    model: str
    attempt: int = 0
    """The job's attempt when it was published. At a later one the message is used up."""
    sent_at: datetime | None = None
    """When it was sent, by the ledger's clock, or a little earlier."""

    @classmethod
    def of(cls, job: Job | JobRef) -> "JobMessage":
        """The message for this job."""
        sent_at = job.published_at or job.created_at
        kind, queue = JobKind(job.kind), Queue(job.queue)
        return cls(job.id, kind, queue, job.provider, job.model, job.attempt, sent_at)


class Publisher(Protocol):
    """Sends messages that name jobs. A message may get lost: the ledger knows the job."""

    def epoch(self, max_age: float = 0.0) -> str:
        """Name the broker's data as of `max_age` seconds ago: the name changes with lost queues."""

    def uptime(self) -> float | None:
        """Seconds since the broker was started; None where nobody knows."""

    def publish(self, messages: Sequence[JobMessage]) -> str:
        """Send jobs' messages, and tell monitors; the epoch in which they were sent.

        Raises `BrokerUnavailable`; some may have been sent then.
        """

    def publish_all(self, messages: Sequence[JobMessage]) -> None:
        """Send messages again, of which monitors know. Raises the same."""

    def waiting(self, queue: Queue) -> int:
        """Count the messages that wait in a queue. Raises `BrokerUnavailable`."""


def publish_now(ledger: Ledger, publisher: Publisher, messages: Sequence[JobMessage]) -> None:
    """Publish jobs that were just committed, and note it. The reconciler publishes what fails.

    Never raises for a broker or a ledger that is away: the jobs are committed, and their caller
    must not hear otherwise.
    """
    for first in range(0, len(messages), SLICE):
        waits = messages[first : first + SLICE]
        try:
            epoch = publisher.publish(waits)
        except BrokerUnavailable as error:
            _log_unpublished(messages[first:], error)
            return
        _note(ledger, [(message.job_id, message.attempt) for message in waits], epoch)


def publish_marked(ledger: Ledger, publisher: Publisher, messages: Sequence[JobMessage]) -> None:
    """Publish jobs that were committed as published. The reconciler publishes what fails.

    Never raises. Marking them first saves a transaction. If this process dies before it has
    published them, the reconciler learns it from later messages or from an empty queue.
    """
    try:
        publisher.publish(messages)
    except BrokerUnavailable as error:
        _log_unpublished(messages, error)
        _take_back(ledger, messages)


def _log_unpublished(messages: Sequence[JobMessage], error: BrokerUnavailable) -> None:
    logger.warning("%d jobs are accepted but not published yet: %s", len(messages), error)


def _take_back(ledger: Ledger, messages: Sequence[JobMessage]) -> None:
    try:
        with ledger.transaction() as unit:
            unit.outbox.mark_unpublished([message.job_id for message in messages])
    except TransientLedgerError as error:
        logger.warning(
            "%d jobs are published later, when they are missed: %s", len(messages), error
        )


def _note(ledger: Ledger, sent: Sequence[tuple[UUID, int]], epoch: str) -> None:
    try:
        with ledger.transaction() as unit:
            unit.outbox.mark_published(sent, epoch)
    except TransientLedgerError as error:
        logger.warning("%d jobs were published, which could not be noted: %s", len(sent), error)
