"""Jobs: every change of state is one conditional UPDATE."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Update,
    case,
    exists,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Session, defer

from config.names import Queue
from repositories.base import BaseRepository
from repositories.errors import ClaimLost
from repositories.models import Attempt, AttemptState, Job, JobState, Worker

OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Claim:
    """A job as one worker took it. Its `attempt` is the fencing token of everything it stores."""

    job_id: UUID
    attempt: int
    worker_id: UUID
    user_id: UUID | None
    provider: str
    model: str
    request: dict[str, Any]
    failures: int
    max_retries: int
    is_bulk: bool


@dataclass(frozen=True)
class JobRef:
    """What a message needs to know of a job."""

    id: UUID
    kind: str
    queue: str
    provider: str
    model: str
    attempt: int
    state: str
    rung_at: datetime | None
    created_at: datetime


class JobRepository(BaseRepository[Job]):
    """The states of jobs."""

    model = Job

    def get_all(self, job_ids: Sequence[UUID], *, with_results: bool = False) -> Sequence[Job]:
        """The jobs of these ids that are there, without what was asked, in any order."""
        query = select(Job).where(Job.id.in_(job_ids))
        return self._session.scalars(
            query if with_results else query.options(defer(Job.result))
        ).all()

    def find_by_idempotency_key(self, user_id: UUID | None, key: str) -> Job | None:
        """The job that this caller enqueued under this key."""
        return self._session.scalars(
            select(Job).where(Job.user_id.is_not_distinct_from(user_id), Job.idempotency_key == key)
        ).one_or_none()

    def claim(self, job_id: UUID, worker_id: UUID, rung_at: datetime | None = None) -> Claim | None:
        """Take a queued job that is due; None when it isn't there to take.

        One conditional UPDATE: of two workers with the same message, one gets the row. `rung_at`
        is when the message that led here was sent; see `RingRepository.take_unrung`.
        """
        row = self._session.execute(
            update(Job)
            .where(
                Job.id == job_id,
                Job.state == JobState.QUEUED,
                or_(Job.not_before.is_(None), Job.not_before <= func.now()),
                Job.expires_at > func.now(),
            )
            .values(
                state=JobState.RUNNING,
                attempt=Job.attempt + 1,
                worker_id=worker_id,
                # LEAST passes over NULL, and a message of unknown time must tell nothing.
                rung_at=None if rung_at is None else func.least(rung_at, func.now()),
                not_before=None,
                started_at=func.coalesce(Job.started_at, func.now()),
            )
            .returning(
                Job.id,
                Job.attempt,
                Job.user_id,
                Job.provider,
                Job.model,
                Job.request,
                Job.failures,
                Job.max_retries,
                Job.queue,
            )
        ).one_or_none()
        if row is None:
            return None
        return Claim(
            job_id=row.id,
            attempt=row.attempt,
            worker_id=worker_id,
            user_id=row.user_id,
            provider=row.provider,
            model=row.model,
            request=row.request,
            failures=row.failures,
            max_retries=row.max_retries,
            is_bulk=Queue(row.queue).is_bulk,
        )

    def check_claim(self, claim: Claim) -> None:
        """Lock the job's row while the claim still holds. Raises `ClaimLost`."""
        held = select(Job.id).where(*_held(claim.job_id, claim.attempt)).with_for_update()
        if self._session.scalar(held) is None:
            raise _lost(claim)

    def set_progress(self, claim: Claim, current: int, total: int) -> None:
        """Record how many of the job's items are done. Raises `ClaimLost`."""
        self._change(claim, update(Job).values(current=current, total=total))

    def succeed(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Store the result and end the job. Raises `ClaimLost`; then nothing is stored.

        Also where the job was taken from us and no other attempt has begun: the answer is paid
        for, and asking again would pay twice.
        """
        stored = self._changes_one(
            update(Job)
            .where(Job.id == claim.job_id, Job.attempt == claim.attempt, Job.state.in_(OPEN_STATES))
            .values(
                state=JobState.SUCCEEDED,
                rung_at=_TAKEN_AT,
                result=dict(result),
                current=Job.total,
                error_code=None,
                error=None,
                not_before=None,
                finished_at=func.now(),
            )
        )
        if not stored:
            raise _lost(claim)

    def keep_answer(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Keep an answer that came when its attempt had been cancelled or had expired.

        The job's state stays as it is. A retry finds the answer and pays no more: see `reopen`.
        """
        self._session.execute(
            update(Job)
            .where(
                Job.id == claim.job_id,
                Job.attempt == claim.attempt,
                Job.state.in_([JobState.CANCELLED, JobState.EXPIRED]),
            )
            .values(result=dict(result))
        )

    def fail(self, claim: Claim, error_code: str, error: str, *, counts: bool = True) -> None:
        """End the job as failed; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change(
            claim,
            update(Job).values(
                state=JobState.FAILED,
                failures=Job.failures + (1 if counts else 0),
                error_code=error_code,
                error=error,
                finished_at=func.now(),
            ),
        )

    def retry_later(
        self, claim: Claim, delay: float, error_code: str, error: str, *, counts: bool
    ) -> None:
        """Put the job back for `delay` seconds; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change(
            claim,
            update(Job).values(
                **_BACK_IN_QUEUE,
                not_before=func.now() + timedelta(seconds=delay),
                failures=Job.failures + (1 if counts else 0),
                error_code=error_code,
                error=error,
            ),
        )

    def release(self, job_id: UUID, attempt: int) -> bool:
        """Hand a job back untried, for another worker to take at once; False if it wasn't held."""
        return self._changes_one(
            update(Job).where(*_held(job_id, attempt)).values(**_BACK_IN_QUEUE, not_before=None)
        )

    def cancel(self, job_id: UUID) -> bool:
        """End a queued or running job as cancelled; False when it had ended already."""
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(OPEN_STATES))
            .values(
                state=JobState.CANCELLED,
                rung_at=_TAKEN_AT,
                finished_at=func.now(),
                not_before=None,
            )
        )

    def reopen(self, job_id: UUID, lifetime: float) -> bool:
        """Queue a failed, cancelled or expired job anew; False when it is none of these.

        Where its answer came when it had ended, that is its result now, and nothing is queued.
        """
        is_answered = Job.result.is_not(None)
        return self._changes_one(
            update(Job)
            .where(
                Job.id == job_id,
                Job.state.in_([JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED]),
            )
            .values(
                **{
                    **_BACK_IN_QUEUE,
                    "state": case((is_answered, JobState.SUCCEEDED), else_=JobState.QUEUED),
                },
                not_before=None,
                failures=0,
                error_code=None,
                error=None,
                current=case((is_answered, Job.total), else_=Job.current),
                finished_at=case((is_answered, func.now()), else_=None),
                expires_at=func.now() + timedelta(seconds=lifetime),
            )
        )

    def seconds_until_due(self, job_id: UUID) -> float | None:
        """How long a job still waits before its next try, by the database's clock."""
        wait = func.extract("epoch", Job.not_before - func.clock_timestamp())
        seconds = self._session.scalar(select(wait).where(Job.id == job_id))
        return None if seconds is None else float(seconds)

    def running_of(self, worker_id: UUID) -> dict[UUID, int]:
        """The jobs that the ledger says this worker runs, each with its attempt."""
        rows = self._session.execute(
            select(Job.id, Job.attempt).where(
                Job.worker_id == worker_id, Job.state == JobState.RUNNING
            )
        )
        return dict(rows.all())

    def expire_overdue(self, limit: int = 1_000) -> Sequence[JobRef]:
        """End up to `limit` open jobs whose deadline has passed."""
        overdue = (
            select(Job.id)
            .where(Job.finished_at.is_(None), Job.expires_at <= func.now())
            .limit(limit)
            .with_for_update(skip_locked=True)
            # Else PostgreSQL may run it again and again, and lock more than `limit`.
            .cte("overdue")
            .prefix_with("MATERIALIZED")
        )
        return job_refs(
            self._session,
            update(Job)
            .where(Job.id.in_(select(overdue.c.id)))
            .values(
                state=JobState.EXPIRED,
                rung_at=_TAKEN_AT,
                not_before=None,
                finished_at=func.now(),
                error_code="EXPIRED",
                error="The job's deadline passed before it was done.",
            ),
        )

    def free_lost(self, silence: float) -> Sequence[JobRef]:
        """Take jobs from workers that were silent for `silence` seconds.

        A lost worker uses up one of the job's retries, so that a job that kills its worker ends.
        """
        alive = exists().where(
            Worker.id == Job.worker_id,
            Worker.heartbeat_at > func.now() - timedelta(seconds=silence),
        )
        last_try = Job.failures >= Job.max_retries
        freed = job_refs(
            self._session,
            update(Job)
            .where(Job.state == JobState.RUNNING, ~alive)
            .values(
                **{**_BACK_IN_QUEUE, "state": case((last_try, "failed"), else_="queued")},
                failures=Job.failures + 1,
                error_code="WORKER_LOST",
                error="The worker that ran this job died.",
                finished_at=case((last_try, func.now()), else_=None),
            ),
        )
        if freed:
            self._session.execute(
                update(Attempt)
                .where(
                    Attempt.job_id.in_([job.id for job in freed]),
                    Attempt.state == AttemptState.STARTED,
                )
                .values(state=AttemptState.LOST, finished_at=func.now())
            )
        return freed

    def count_open(self) -> dict[str, int]:
        """How many jobs are queued and running."""
        rows = self._session.execute(
            select(Job.state, func.count()).where(Job.finished_at.is_(None)).group_by(Job.state)
        )
        return dict(rows.all())

    def _change(self, claim: Claim, statement: Update) -> None:
        if not self._changes_one(statement.where(*_held(claim.job_id, claim.attempt))):
            raise _lost(claim)

    def _changes_one(self, statement: Update) -> bool:
        return self._session.scalar(statement.returning(Job.id)) is not None


def job_refs(session: Session, statement: Update) -> list[JobRef]:
    """Run an UPDATE of jobs; the jobs that it changed."""
    rows = session.execute(
        statement.returning(
            Job.id,
            Job.kind,
            Job.queue,
            Job.provider,
            Job.model,
            Job.attempt,
            Job.state,
            Job.rung_at,
            Job.created_at,
        ).execution_options(synchronize_session=False)
    )
    return [JobRef(**row._asdict()) for row in rows]


_BACK_IN_QUEUE: dict[str, Any] = {
    "state": JobState.QUEUED,
    "worker_id": None,
    "rung_at": None,
    "rung_epoch": None,
}


_TAKEN_AT = case((Job.state == JobState.RUNNING, Job.rung_at))
"""When the job's message was sent, if it was taken: of a job that ends in the queue, it wasn't."""


def _held(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(
        f"Attempt {claim.attempt} of job {claim.job_id} no longer holds the job; "
        "nothing was stored."
    )
