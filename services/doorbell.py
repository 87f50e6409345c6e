"""How services tell workers that there is work, without knowing which queue carries it."""

import logging
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from config.errors import PromptStackError
from repositories.errors import LedgerUnavailable
from repositories.models import Job, JobKind
from repositories.session import Ledger

logger = logging.getLogger(__name__)


class BrokerUnavailable(PromptStackError):
    """The message couldn't be sent; the job is in the ledger and is rung later."""

    code = "BROKER_UNAVAILABLE"
    transient = True


@dataclass(frozen=True)
class Ring:
    """What a message says, and what a monitor may show: never any content."""

    job_id: UUID
    kind: JobKind
    provider: str
    model: str
    attempt: int = 0
    """The job's attempt when it was rung; a later one means that the message is used up."""

    @classmethod
    def of(cls, job: Job) -> "Ring":
        """The message for this job."""
        return cls(job.id, JobKind(job.kind), job.provider, job.model, job.attempt)


class Doorbell(Protocol):
    """Sends a message that names a job. The message may get lost: the ledger knows the job."""

    def epoch(self) -> str:
        """Name the broker's present data: it changes when the queues are lost."""

    def ring(self, ring: Ring) -> None:
        """Send a job's message. Raises `BrokerUnavailable`."""

    def waiting(self, kind: JobKind) -> int:
        """How many messages of a kind wait. Raises `BrokerUnavailable`."""


def ring_now(ledger: Ledger, doorbell: Doorbell, ring: Ring) -> None:
    """Ring a job that was just committed, and note it; leave it to the reconciler if that fails."""
    try:
        epoch = doorbell.epoch()
        doorbell.ring(ring)
    except BrokerUnavailable as error:
        logger.warning("job %s is accepted but not rung yet: %s", ring.job_id, error)
        return
    try:
        with ledger.transaction() as work:
            work.jobs.mark_rung(ring.job_id, ring.attempt, epoch)
    except LedgerUnavailable as error:
        # The job is committed, and its caller must not be told otherwise.
        logger.warning("job %s was rung, which could not be noted: %s", ring.job_id, error)
