"""Bulk jobs that were not sent to workers yet: they wait here, and users take turns."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from sqlalchemy import func, text, update
from sqlalchemy.orm import Session

from promptstack.repositories.jobs.jobs import job_refs
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import IS_HELD, Job

_NOBODY = "'00000000-0000-0000-0000-000000000000'::uuid"

# One step in an index for each user, who may have a hundred thousand jobs; first those after the
# last, then the others.
_USERS = text(
    f"""
    WITH RECURSIVE later (user_id, n) AS (
        (SELECT coalesce(user_id, {_NOBODY}), 1 FROM jobs
         WHERE {IS_HELD} AND queue = :queue AND coalesce(user_id, {_NOBODY}) > :last
         ORDER BY coalesce(user_id, {_NOBODY}) LIMIT 1)
        UNION ALL
        SELECT (SELECT coalesce(user_id, {_NOBODY}) FROM jobs
                WHERE {IS_HELD} AND queue = :queue
                    AND coalesce(user_id, {_NOBODY}) > later.user_id
                ORDER BY coalesce(user_id, {_NOBODY}) LIMIT 1), n + 1
        FROM later WHERE later.user_id IS NOT NULL AND n < :most
    ),
    first (user_id, n) AS (
        (SELECT coalesce(user_id, {_NOBODY}), 1 FROM jobs
         WHERE {IS_HELD} AND queue = :queue AND coalesce(user_id, {_NOBODY}) <= :last
         ORDER BY coalesce(user_id, {_NOBODY}) LIMIT 1)
        UNION ALL
        SELECT (SELECT coalesce(user_id, {_NOBODY}) FROM jobs
                WHERE {IS_HELD} AND queue = :queue
                    AND coalesce(user_id, {_NOBODY}) > first.user_id
                    AND coalesce(user_id, {_NOBODY}) <= :last
                ORDER BY coalesce(user_id, {_NOBODY}) LIMIT 1), n + 1
        FROM first WHERE first.user_id IS NOT NULL AND n < :most
    )
    SELECT found.user_id, coalesce(users.tier, 'free')
    FROM (SELECT * FROM later UNION ALL SELECT * FROM first) AS found
    LEFT JOIN users ON users.id = found.user_id
    WHERE found.user_id IS NOT NULL LIMIT :most
    """  # noqa: S608 - texts of our own
)
_TAKE = text(
    f"""
    SELECT picked.id
    FROM unnest(CAST(:users AS uuid[]), CAST(:counts AS integer[])) AS given (user_id, most),
    LATERAL (
        SELECT id FROM jobs
        WHERE {IS_HELD} AND queue = :queue AND coalesce(user_id, {_NOBODY}) = given.user_id
        ORDER BY id LIMIT given.most FOR UPDATE SKIP LOCKED
    ) AS picked
    """  # noqa: S608 - texts of our own
)


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
