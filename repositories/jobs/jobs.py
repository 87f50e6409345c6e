"""Jobs: every change of state is one conditional UPDATE."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Update,
    case,
    func,
    select,
    update,
)
from sqlalchemy.orm import Session, defer

from promptstack.config.names import Queue
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.steps import (
    ADD,
    CHECK_CLAIM,
    CLAIM,
    NARROW_SHARD,
    OPEN_STATES,
    SET_PROGRESS,
    SHARD_OF,
    STANDING,
    SUCCEED,
    TAKEN_AT,
)
from promptstack.repositories.models import Job, JobKind, JobState, new_id

RETRIABLE_STATES = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)


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
    seconds_left: float
    """From the claim to the job's deadline, by the database's clock."""
    run_id: UUID | None = None
    """Whose shard it is."""
    deaths: int = 0
    """Workers that died one after the other with it in hand, and nothing of it done meanwhile."""


@dataclass(frozen=True)
class Standing:
    """Where a job stands, and what its calls came to."""

    id: UUID
    state: str
    provider: str
    model: str
    current: int
    total: int
    attempt: int
    failures: int
    error_code: str | None
    error: str | None
    not_before: datetime | None
    seconds_until_due: float | None
    """How long it waits before its next try, by the database's clock; None where it doesn't."""
    calls: int
    tokens: int
    """Of all its calls, input and output together."""


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


@dataclass(frozen=True)
class EndedJobs:
    """Jobs that ended without success before `until`; what is None is not asked for."""

    until: datetime
    since: datetime | None = None
    state: JobState | None = None
    user_id: UUID | None = None
    kind: JobKind | None = None
    provider: str | None = None
    model: str | None = None
    error_code: str | None = None


class JobRepository(BaseRepository[Job]):
    """The states of jobs."""

    model = Job

    def get_all(self, job_ids: Sequence[UUID], *, with_results: bool = False) -> Sequence[Job]:
        """The jobs of these ids that are there, without what was asked, in any order."""
        query = select(Job).where(Job.id.in_(job_ids))
        return self._session.scalars(
            query if with_results else query.options(defer(Job.result))
        ).all()

    def add(self, *, lifetime: float, epoch: str | None = None, **values: Any) -> Job | None:
        """Add a queued job that expires in `lifetime` seconds, by the clock that ends it.

        With `epoch`, that of the broker, it is marked as rung: its message leaves right after the
        commit. None where its caller has a job of the same idempotency key.
        """
        # It belongs to no session: what the ORM does for a row costs as much as the INSERT.
        row = self._session.execute(
            ADD,
            {
                "run_id": None,
                "deaths": 0,
                **values,
                "id": new_id(),
                "epoch": epoch,
                "lifetime": timedelta(seconds=lifetime),
            },
        ).one_or_none()
        return None if row is None else Job(**row._mapping)

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
            CLAIM, {"the_job": job_id, "the_worker": worker_id, "sent_at": rung_at}
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
            deaths=row.deaths,
            is_bulk=Queue(row.queue).is_bulk,
            run_id=row.run_id,
            seconds_left=float(row.seconds_left),
        )

    def check_claim(self, claim: Claim) -> None:
        """Lock the job's row while the claim still holds. Raises `ClaimLost`."""
        if self._session.scalar(CHECK_CLAIM, _of(claim)) is None:
            raise _lost(claim)

    def set_progress(self, claim: Claim, current: int, total: int) -> None:
        """Record how many of the job's items are done. Raises `ClaimLost`."""
        values = {**_of(claim), "the_current": current, "the_total": total}
        if self._session.scalar(SET_PROGRESS, values) is None:
            raise _lost(claim)

    def shard_of(self, claim: Claim) -> tuple[int, int, int]:
        """A shard's first and last position, and its deaths; locks its row. Raises `ClaimLost`."""
        row = self._session.execute(SHARD_OF, _of(claim)).one_or_none()
        if row is None:
            raise _lost(claim)
        return row[0], row[1], row[2]

    def narrow_shard(self, claim: Claim, first: int, last: int, deaths: int) -> None:
        """Leave a shard with these positions, and so many deaths. Raises `ClaimLost`."""
        request = {"first": first, "last": last}
        values = {**_of(claim), "the_request": request, "the_deaths": deaths}
        if self._session.scalar(NARROW_SHARD, values) is None:
            raise _lost(claim)

    def succeed(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Store the result and end the job. Raises `ClaimLost`; then nothing is stored.

        Also where the job was taken from us and no other attempt has begun: the answer is paid
        for, and asking again would pay twice.
        """
        stored = self._session.scalar(SUCCEED, {**_of(claim), "the_result": dict(result)})
        if stored is None:
            raise _lost(claim)

    def keep_answer(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Keep an answer that came when its attempt had been cancelled, given up or had expired.

        The job's state stays as it is. A retry finds the answer and pays no more: see `reopen`.
        """
        self._session.execute(
            update(Job)
            .where(
                Job.id == claim.job_id,
                Job.attempt == claim.attempt,
                Job.state.in_(RETRIABLE_STATES),
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

    def expire(self, claim: Claim) -> None:
        """End the job as expired. Raises `ClaimLost`."""
        self._change(claim, update(Job).values(**EXPIRED))

    def retry_later(
        self, claim: Claim, delay: float, error_code: str, error: str, *, counts: bool
    ) -> None:
        """Put the job back for `delay` seconds; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change(
            claim,
            update(Job).values(
                **BACK_IN_QUEUE,
                not_before=func.now() + timedelta(seconds=delay),
                failures=Job.failures + (1 if counts else 0),
                error_code=error_code,
                error=error,
            ),
        )

    def release(self, job_id: UUID, attempt: int) -> bool:
        """Hand a job back untried, for another worker to take at once; False if it wasn't held."""
        return self._changes_one(
            update(Job)
            .where(*_held(job_id, attempt))
            .values(**BACK_IN_QUEUE, queue=BEFORE_THE_QUEUE, not_before=None)
        )

    def cancel(self, job_id: UUID) -> bool:
        """End a queued or running job as cancelled; False when it had ended already."""
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(OPEN_STATES))
            .values(
                state=JobState.CANCELLED,
                rung_at=TAKEN_AT,
                finished_at=func.now(),
                not_before=None,
            )
        )

    def reopen(self, job_id: UUID, lifetime: float) -> bool:
        """Queue a failed, cancelled or expired job anew; False when it is none of these.

        Where its answer came when it had ended, that is its result now, and nothing is queued.
        """
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(RETRIABLE_STATES))
            .values(**_reopened(lifetime))
        )

    def reopen_many(self, ended: EndedJobs, lifetime: float, limit: int) -> Sequence[UUID]:
        """Do the same with up to `limit` jobs of these, the oldest first; their ids."""
        conditions = {
            "state": ended.state is not None and Job.state == ended.state,
            "user": ended.user_id is not None and Job.user_id == ended.user_id,
            "kind": ended.kind is not None and Job.kind == ended.kind,
            "provider": ended.provider is not None and Job.provider == ended.provider,
            "model": ended.model is not None and Job.model == ended.model,
            "error": ended.error_code is not None and Job.error_code == ended.error_code,
            "since": ended.since is not None and Job.finished_at >= ended.since,
        }
        chosen = (
            select(Job.id)
            .where(
                Job.finished_at.is_not(None),
                # What ends again while this goes on is not taken twice.
                Job.finished_at < ended.until,
                Job.state.in_(RETRIABLE_STATES),
                # A run sees to its parts itself.
                Job.run_id.is_(None),
                *(condition for condition in conditions.values() if condition is not False),
            )
            .order_by(Job.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("chosen")
            .prefix_with("MATERIALIZED")
        )
        return self._session.scalars(
            update(Job)
            .where(Job.id.in_(select(chosen.c.id)))
            .values(**_reopened(lifetime))
            .returning(Job.id)
            .execution_options(synchronize_session=False)
        ).all()

    def standing(self, job_id: UUID) -> Standing | None:
        """Where a job stands, and what its calls came to."""
        row = self._session.execute(STANDING, {"the_job": job_id}).one_or_none()
        return None if row is None else Standing(**row._mapping)

    def open_of(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Those of these jobs that have not ended."""
        query = select(Job.id).where(Job.id.in_(job_ids), Job.finished_at.is_(None))
        return set(self._session.scalars(query))

    def running_of(self, worker_id: UUID) -> dict[UUID, int]:
        """The jobs that the ledger says this worker runs, each with its attempt."""
        rows = self._session.execute(
            select(Job.id, Job.attempt).where(
                Job.worker_id == worker_id, Job.state == JobState.RUNNING
            )
        )
        return dict(rows.all())

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


BACK_IN_QUEUE: dict[str, Any] = {
    "state": JobState.QUEUED,
    "worker_id": None,
    "rung_at": None,
    "rung_epoch": None,
}


BEFORE_THE_QUEUE = case(
    (Job.queue.in_([queue for queue in Queue if queue.is_bulk]), Job.queue), else_=Queue.RESUMED
)
"""Where a job waits that was begun before: not behind all that came since."""


EXPIRED: dict[str, Any] = {
    "state": JobState.EXPIRED,
    "rung_at": TAKEN_AT,
    "not_before": None,
    "finished_at": func.now(),
    "error_code": "EXPIRED",
    "error": "The job's deadline passed before it was done.",
}


def _reopened(lifetime: float) -> dict[str, Any]:
    is_answered = Job.result.is_not(None)
    return {
        **BACK_IN_QUEUE,
        "state": case((is_answered, JobState.SUCCEEDED), else_=JobState.QUEUED),
        "not_before": None,
        "failures": 0,
        "deaths": 0,
        "error_code": None,
        "error": None,
        "current": case((is_answered, Job.total), else_=Job.current),
        "finished_at": case((is_answered, func.now()), else_=None),
        "expires_at": func.now() + timedelta(seconds=lifetime),
    }


def _held(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)


def _of(claim: Claim) -> dict[str, Any]:
    return {"the_job": claim.job_id, "the_attempt": claim.attempt}


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(
        f"Attempt {claim.attempt} of job {claim.job_id} no longer holds the job; "
        "nothing was stored."
    )
