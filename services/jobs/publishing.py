"""How services tell workers that there is work, without knowing which queue carries it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.config.names import Queue
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.jobs.jobs import JobRef
from promptstack.repositories.models import Job, JobKind
from promptstack.repositories.session import Ledger

logger = logging.getLogger(__name__)

SLICE = 100
"""Messages sent between two notes: the reconciler rings, after a while, what isn't noted."""


class BrokerUnavailable(PromptStackError):
    """The message couldn't be sent; the job is in the ledger and is rung later."""

    code = "BROKER_UNAVAILABLE"
    transient = True


@dataclass(frozen=True)
class Ring:
    """What a message says, and what a monitor may show: never any content."""

    job_id: UUID
    kind: JobKind
    queue: Queue
    provider: str
    model: str
    attempt: int = 0
    """The job's attempt when it was rung; a later one means that the message is used up."""
    sent_at: datetime | None = None
    """When it was sent, by the ledger's clock, or a little earlier."""

    @classmethod
    def of(cls, job: Job | JobRef) -> "Ring":
        """The message for this job."""
        sent_at = job.rung_at or job.created_at
        kind, queue = JobKind(job.kind), Queue(job.queue)
        return cls(job.id, kind, queue, job.provider, job.model, job.attempt, sent_at)


class Doorbell(Protocol):
    """Sends a message that names a job. The message may get lost: the ledger knows the job."""

    def epoch(self) -> str:
        """Name the broker's present data: it changes when the queues are lost."""

    def uptime(self) -> float | None:
        """Seconds since the broker was started; None where nobody knows."""

    def ring(self, ring: Ring) -> None:
        """Send a job's message. Raises `BrokerUnavailable`."""

    def ring_all(self, rings: Sequence[Ring]) -> None:
        """Send many together. Raises `BrokerUnavailable`: then some may have been sent."""

    def waiting(self, queue: Queue) -> int:
        """How many messages wait in a queue. Raises `BrokerUnavailable`."""


def ring_now(ledger: Ledger, doorbell: Doorbell, rings: Sequence[Ring]) -> None:
    """Ring jobs that were just committed, and note it; leave to the reconciler what fails.

    Never raises for a broker or a ledger that is away: the jobs are committed, and their caller
    must not be told otherwise.
    """
    for first in range(0, len(rings), SLICE):
        waits = rings[first : first + SLICE]
        sent: list[tuple[UUID, int]] = []
        try:
            epoch = doorbell.epoch()
            for ring in waits:
                doorbell.ring(ring)
                sent.append((ring.job_id, ring.attempt))
        except BrokerUnavailable as error:
            left = len(rings) - first - len(sent)
            logger.warning("%d jobs are accepted but not rung yet: %s", left, error)
        if sent:
            _note(ledger, sent, epoch)
        if len(sent) < len(waits):
            return


def ring_marked(ledger: Ledger, doorbell: Doorbell, rings: Sequence[Ring]) -> None:
    """Ring jobs that were committed as rung; leave to the reconciler what fails. Never raises.

    Marked first, they cost one transaction and not two. If this process dies before it has rung,
    the messages that are taken later tell, or their empty queue does.
    """
    for position, ring in enumerate(rings):
        try:
            doorbell.ring(ring)
        except BrokerUnavailable as error:
            left = rings[position:]
            logger.warning("%d jobs are accepted but not rung yet: %s", len(left), error)
            _take_back(ledger, left)
            return


def _take_back(ledger: Ledger, rings: Sequence[Ring]) -> None:
    try:
        with ledger.transaction() as unit:
            unit.rings.mark_unrung([ring.job_id for ring in rings])
    except TransientLedgerError as error:
        logger.warning("%d jobs are rung later, when they are missed: %s", len(rings), error)


def _note(ledger: Ledger, sent: Sequence[tuple[UUID, int]], epoch: str) -> None:
    try:
        with ledger.transaction() as unit:
            unit.rings.mark_rung(sent, epoch)
    except TransientLedgerError as error:
        logger.warning("%d jobs were rung, which could not be noted: %s", len(sent), error)
