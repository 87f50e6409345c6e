"""Jobs that another service's Celery has sent, and what it waits for when they end.

Celery keeps that in the message alone: a chain's next task, a chord, callbacks. A job may need
other messages before it ends, so it stands here until Celery was told the end, at least once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import JobKind
from promptstack.repositories.wire_values import dump_jsonb

TELLING_SECONDS = 30.0
"""How long who takes what a job's caller waits for has to tell it, before another does."""
UNTOLD_SECONDS = 10.0
"""How long after its end a job gets another message to tell it."""
MOST_AT_ONCE = 500


@dataclass(frozen=True)
class SentJob:
    """A job as another service's Celery has sent it."""

    id: UUID
    """Of the message."""
    kind: JobKind
    queue: Queue
    request: Mapping[str, Any]
    """As it was given: a worker checks it."""
    options: Mapping[str, Any]
    """What else the message says, for when the job ends."""
    not_before: datetime | None = None


_ADD = text("""
WITH added AS (
    INSERT INTO jobs (
        id, kind, queue, provider, model, request, request_hash, user_id, max_retries, expires_at,
        not_before, is_checked, is_followed
    ) VALUES (
        :id, :kind, :queue, '', '', CAST(:request AS jsonb), '', :user_id, 0,
        greatest(now(), CAST(:not_before AS timestamptz)) + interval '7 days',
        :not_before, false, true
    )
    ON CONFLICT DO NOTHING RETURNING id
)
INSERT INTO celery_messages (job_id, options) SELECT id, CAST(:options AS jsonb) FROM added
""")
_TAKE = text("""
UPDATE celery_messages SET taken_at = now()
WHERE job_id = :job AND (taken_at IS NULL OR taken_at < now() - make_interval(secs => :telling))
RETURNING options
""")
_TOLD = text("""
WITH gone AS (DELETE FROM celery_messages WHERE job_id = :job RETURNING job_id)
UPDATE jobs SET is_followed = false FROM gone WHERE jobs.id = gone.job_id
""")
_ASK = text("""
WITH ended AS (
    SELECT * FROM jobs
    WHERE is_followed AND finished_at < now() - make_interval(secs => :untold)
    ORDER BY finished_at LIMIT :most
)
UPDATE celery_messages SET asked_at = now() FROM ended
WHERE job_id = ended.id
AND coalesce(greatest(asked_at, taken_at), '-infinity') < now() - make_interval(secs => :telling)
RETURNING id, kind, queue, provider, model, attempt, state, rung_at AS published_at, created_at,
    user_id
""")


class CeleryMessageRepository:
    """Keeps what Celery must be told."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, job: SentJob, user_id: UUID | None) -> None:
        """Add a job of this user, unless its message has come before."""
        values = {
            **vars(job),
            "user_id": user_id,
            "request": dump_jsonb(job.request),
            "options": dump_jsonb(job.options),
        }
        self._session.execute(_ADD, values)

    def take(self, job_id: UUID) -> dict[str, Any] | None:
        """What to tell of an ended job; None if another tells it, or has done so."""
        options: dict[str, Any] | None = self._session.scalar(
            _TAKE, {"job": job_id, "telling": TELLING_SECONDS}
        )
        return options

    def told(self, job_id: UUID) -> None:
        """Note that Celery was told the end of a job."""
        self._session.execute(_TOLD, {"job": job_id})

    def untold(self) -> Sequence[JobRef]:
        """Jobs that have ended a while ago and need a message, for Celery to be told."""
        given = {"untold": UNTOLD_SECONDS, "telling": TELLING_SECONDS, "most": MOST_AT_ONCE}
        return [JobRef(**row._mapping) for row in self._session.execute(_ASK, given)]
