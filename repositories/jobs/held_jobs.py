"""Bulk jobs that were not sent to workers yet: they wait here, and users take turns."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import func, text, update
from sqlalchemy.orm import Session

from promptstack.repositories.jobs.by_user import ring_of_users, taken_by_user
from promptstack.repositories.jobs.jobs import job_refs
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import IS_HELD, Job

_USERS = text(ring_of_users(f"{IS_HELD} AND queue = :queue"))
_TAKE = text(taken_by_user(f"{IS_HELD} AND queue = :queue", "id"))


class HeldJobRepository:
    """Finds them by user, however many a user has. One caller at a time: see `try_lock`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def users(self, queue: str, last: UUID, most: int) -> dict[UUID, str]:
        """Return up to `most` users with jobs for the queue, those after `last` first; their tiers.

        Jobs without a user are those of the user 0.
        """
        given = {"queue": queue, "last": last, "most": most}
        return {row[0]: row[1] for row in self._session.execute(_USERS, given)}

    def take(self, queue: str, counts: Mapping[UUID, int], epoch: str) -> Sequence[JobRef]:
        """Mark so many jobs of each user as published in `epoch`; the oldest first."""
        given = {"queue": queue, "users": list(counts), "counts": list(counts.values())}
        ids = self._session.scalars(_TAKE, given).all()
        taken = job_refs(
            self._session,
            update(Job)
            .where(Job.id.in_(ids))
            .values(published_at=func.now(), published_epoch=epoch),
        )
        return sorted(taken, key=lambda job: job.id)
