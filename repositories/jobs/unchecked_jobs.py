"""Jobs that were stored as their callers gave them, and what a worker's checks make of them."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.orm import Session

from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.wire_values import array_literal, written_for_jsonb

_HELD = "id = :job AND attempt = :attempt AND state = 'running'"
_CREATED_AT = text(f"SELECT created_at FROM jobs WHERE {_HELD} FOR UPDATE")  # noqa: S608 - ours
_STORE = text(f"""
UPDATE jobs SET
    is_checked = true,
    provider = :provider,
    model = :model,
    request = CAST(:request AS jsonb),
    max_retries = :max_retries,
    tags = coalesce(nullif(CAST(:tags AS text[]), ARRAY[]::text[]), tags),
    webhook = coalesce(:webhook, webhook),
    expires_at = CASE
        -- It was queued again, with a deadline counted from then.
        WHEN attempt > 1 THEN least(expires_at, now() + make_interval(secs => :lifetime))
        -- What Celery sends with a time lives from then, and was given 7 days more.
        WHEN is_followed THEN greatest(created_at, expires_at - interval '7 days')
            + make_interval(secs => :lifetime)
        ELSE created_at + make_interval(secs => :lifetime)
    END
WHERE {_HELD}
RETURNING CAST(extract(epoch FROM expires_at - clock_timestamp()) AS float8)
""")  # noqa: S608 - ours


class CheckedJob(NamedTuple):
    """What the checks made of a job."""

    provider: str
    model: str
    request: str
    """As JSON."""
    max_retries: int
    tags: Sequence[str]
    """Unless there are none: SQL has stored its own."""
    webhook: str | None
    lifetime: float
    """Seconds from its creation to its deadline."""


class UncheckedJobRepository:
    """Reads and changes jobs, each under its claim."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def created_at(self, claim: Claim) -> datetime:
        """When the job was enqueued; locks its row. Raises `ClaimLost`."""
        created_at: datetime | None = self._session.scalar(_CREATED_AT, _of(claim))
        if created_at is None:
            raise claim.lost()
        return created_at

    def store(self, claim: Claim, checked: CheckedJob) -> float:
        """Put what was checked in the place of what was given; seconds until the job's deadline.

        Its `request_hash` stays: a caller's idempotency key is compared with what the caller gave.
        Raises `ClaimLost`.
        """
        request = written_for_jsonb(checked.request)
        checked = checked._replace(request=request, tags=array_literal(checked.tags))
        values = {**checked._asdict(), **_of(claim)}
        seconds_left: float | None = self._session.scalar(_STORE, values)
        if seconds_left is None:
            raise claim.lost()
        return seconds_left


def _of(claim: Claim) -> dict[str, object]:
    return {"job": claim.job_id, "attempt": claim.attempt}
