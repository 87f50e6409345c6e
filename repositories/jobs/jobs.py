"""Jobs as callers see them: add, get, list, cancel, reopen. `steps.py` draws the states."""

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Interval,
    Table,
    Update,
    bindparam,
    case,
    func,
    insert,
    inspect,
    literal_column,
    select,
    update,
)
from sqlalchemy.orm import Session, defer, selectinload

from promptstack.config.names import Queue
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.records import JobFilter, JobRef
from promptstack.repositories.models import Job, JobKind, JobState, new_id
from promptstack.repositories.pages import Page, PageQuery

OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)
RETRIABLE_STATES = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
UPKEEP = (JobKind.OPERATION, JobKind.BATCH)
"""Jobs that do the work of something else, under whose id they are looked at."""
PUBLISHED_IF_TAKEN = case((Job.state == JobState.RUNNING, Job.published_at))
"""When the job's message was sent, if a worker took it: a job that ends in the queue has none."""
BACK_IN_QUEUE: dict[str, Any] = {
    "state": JobState.QUEUED,
    "worker_id": None,
    "published_at": None,
    "published_epoch": None,
}
BEFORE_THE_QUEUE = case(
    (Job.queue.in_([queue for queue in Queue if queue.is_bulk]), Job.queue), else_=Queue.RESUMED
)
"""The queue of a job that was begun before: it does not wait behind all newer ones."""
CANCELLED: dict[str, Any] = {
    "state": JobState.CANCELLED,
    "published_at": PUBLISHED_IF_TAKEN,
    "not_before": None,
    "finished_at": func.now(),
}
EXPIRED: dict[str, Any] = {
    "state": JobState.EXPIRED,
    "published_at": PUBLISHED_IF_TAKEN,
    "not_before": None,
    "finished_at": func.now(),
    "error_code": "EXPIRED",
    "error": "The job's deadline passed before it was done.",
}


class JobRepository(BaseRepository[Job]):
    """Jobs."""

    model = Job

    def get_with_attempts(self, job_id: UUID) -> Job | None:
        """A job and its provider calls, without what was asked and answered."""
        query = select(Job).where(Job.id == job_id)
        loaded = query.options(selectinload(Job.attempts), defer(Job.result))
        return self._session.scalars(loaded).one_or_none()

    def get_all(self, job_ids: Sequence[UUID], *, with_results: bool = False) -> Sequence[Job]:
        """The jobs of these ids that are there, without what was asked, in any order."""
        query = select(Job).where(Job.id.in_(job_ids))
        return self._session.scalars(
            query if with_results else query.options(defer(Job.result))
        ).all()

    def find(self, wanted: JobFilter, asked: PageQuery) -> Page[Job]:
        """A page of jobs, newest first."""
        return self.get_page(asked, *conditions_of(wanted))

    def add(self, *, lifetime: float, **values: Any) -> Job:
        """Add a queued job of a run that expires in `lifetime` seconds, by the clock that ends it.

        Jobs of callers come by `NewJobRepository`.
        """
        # It belongs to no session: what the ORM does for a row costs as much as the INSERT.
        given = {"id": new_id(), "deaths": 0, **values, "lifetime": timedelta(seconds=lifetime)}
        return Job(**self._session.execute(_ADD, given).one()._mapping)

    def find_by_idempotency_keys(self, user_id: UUID | None, keys: Collection[str]) -> list[Job]:
        """The jobs that this caller enqueued under these keys."""
        of_caller = Job.user_id.is_not_distinct_from(user_id)
        query = select(Job).where(of_caller, Job.idempotency_key.in_(keys))
        return list(self._session.scalars(query))

    def cancel(self, job_id: UUID) -> bool:
        """End a queued or running job as cancelled; False when it had ended already."""
        return self._changes_one(
            update(Job).where(Job.id == job_id, Job.state.in_(OPEN_STATES)).values(**CANCELLED)
        )

    def reopen(self, job_id: UUID, lifetime: float) -> bool:
        """Queue a failed, cancelled or expired job again; False when it is none of these.

        If its answer came after its end, the job has succeeded with it, and nothing is queued.
        """
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(RETRIABLE_STATES))
            .values(**reopened(lifetime))
        )

    def open_of(self, job_ids: Collection[UUID]) -> set[UUID]:
        """Those of these jobs that have not ended."""
        query = select(Job.id).where(Job.id.in_(job_ids), Job.finished_at.is_(None))
        return set(self._session.scalars(query))

    def is_streamed(self, job_id: UUID) -> bool:
        """Whether a job is a generation that shows its text as it is produced."""
        # Of a job that was not checked yet it may be anything.
        query = select(Job.request.contains({"stream": True})).where(Job.id == job_id)
        return bool(self._session.scalar(query))

    def count_open(self) -> dict[str, int]:
        """How many jobs are queued and running."""
        rows = self._session.execute(
            select(Job.state, func.count()).where(Job.finished_at.is_(None)).group_by(Job.state)
        )
        return dict(rows.all())

    def _changes_one(self, statement: Update) -> bool:
        return self._session.scalar(statement.returning(Job.id)) is not None


def reopened(lifetime: float) -> dict[str, Any]:
    """What a job that has ended becomes when it is queued again."""
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


def conditions_of(wanted: JobFilter) -> list[ColumnElement[bool]]:
    """What a job meets that a filter matches."""
    same = {
        Job.state: wanted.state,
        Job.kind: wanted.kind,
        Job.provider: wanted.provider,
        Job.model: wanted.model,
        Job.error_code: wanted.error,
        Job.user_id: wanted.user_id,
        Job.api_key_id: wanted.api_key_id,
    }
    conditions = [column == value for column, value in same.items() if value is not None]
    if wanted.kind is None:
        conditions += [Job.run_id.is_(None), Job.kind.not_in(UPKEEP)]
    if wanted.tag is not None:
        # The second one as in the index, which has no jobs without tags.
        conditions += [Job.tags.contains([wanted.tag]), literal_column("tags <> '{}'")]
    if wanted.state in OPEN_STATES:
        conditions.append(Job.finished_at.is_(None))  # as in the index of open jobs
    if wanted.since is not None:
        conditions.append(Job.created_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(Job.created_at < wanted.until)
    return conditions


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
            Job.published_at,
            Job.created_at,
            Job.user_id,
        ).execution_options(synchronize_session=False)
    )
    return [JobRef(**row._asdict()) for row in rows]


_JOBS = cast("Table", Job.__table__)
_GIVEN = (
    "id",
    "kind",
    "queue",
    "provider",
    "model",
    "request",
    "request_hash",
    "user_id",
    "api_key_id",
    "max_retries",
    "deaths",
    "run_id",
)
_ADD = (
    insert(_JOBS)
    .values(
        {name: bindparam(name, type_=_JOBS.c[name].type) for name in _GIVEN}
        | {
            # Not when its transaction began: the run may have begun anew since.
            "created_at": func.clock_timestamp(),
            "expires_at": func.now() + bindparam("lifetime", type_=Interval),
        }
    )
    # Under the names of the model's attributes.
    .returning(*(column.label(name) for name, column in inspect(Job).columns.items()))
)
