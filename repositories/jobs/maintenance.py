"""Maintenance: what the reconciler does to many jobs at once."""

import json
import math
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, case, delete, exists, func, select, text, update
from sqlalchemy.orm import Session

from promptstack.repositories.jobs.jobs import BACK_IN_QUEUE, BEFORE_THE_QUEUE, EXPIRED, job_refs
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import (
    Attempt,
    AttemptState,
    Billing,
    Job,
    JobKind,
    JobState,
    Worker,
)

# Built once: each worker asks them every second.
_WATCH = text("SELECT last_round, blind FROM watch WHERE id = 1")
_NOTE_WATCH = text(
    "INSERT INTO watch (id, last_round, blind) VALUES (1, :now, CAST(:blind AS jsonb)) "
    "ON CONFLICT (id) DO UPDATE SET last_round = excluded.last_round, blind = excluded.blind"
)


class MaintenanceRepository:
    """Ends what is overdue, frees what dead workers held, deletes what is old."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def last_watch(self) -> tuple[float | None, list[tuple[float, float]]]:
        """When a reconciler last looked, and the spans in which none could, in seconds."""
        watch = self._session.execute(_WATCH).one_or_none()
        if watch is None:
            return None, []
        spans = [(-math.inf if begin is None else begin, end) for begin, end in watch.blind]
        return watch.last_round, spans

    def note_watch(self, now: float, blind: Sequence[tuple[float, float]]) -> None:
        """Record that a reconciler looks now. One caller at a time."""
        spans = [[begin if math.isfinite(begin) else None, end] for begin, end in blind]
        self._session.execute(_NOTE_WATCH, {"now": now, "blind": json.dumps(spans)})

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
            update(Job).where(Job.id.in_(select(overdue.c.id))).values(**EXPIRED),
        )

    def free_lost(self, timeout: float, limit: int = 1_000) -> Sequence[JobRef]:
        """Take up to `limit` jobs from workers that were silent for `timeout` seconds.

        For a generation, a lost worker uses up one retry, so a job that kills its workers ends.
        For shards and documents, only `deaths` is raised. The worker that takes such a job next
        cuts it smaller, until the item that kills workers is alone and fails by itself.
        """
        alive = exists().where(
            Worker.id == Job.worker_id,
            Worker.heartbeat_at > func.now() - timedelta(seconds=timeout),
        )
        orphans = (
            select(Job.id)
            .where(Job.state == JobState.RUNNING, ~alive)
            .limit(limit)
            # A worker may be frozen in the middle of a write: its row is not waited for.
            .with_for_update(skip_locked=True)
            .cte("orphans")
            .prefix_with("MATERIALIZED")
        )
        can_be_cut = Job.kind.in_((JobKind.SHARD, JobKind.EMBEDDING, JobKind.VECTORS))
        last_try = and_(~can_be_cut, Job.failures >= Job.max_retries)
        freed = job_refs(
            self._session,
            update(Job)
            .where(Job.id.in_(select(orphans.c.id)))
            .values(
                **{**BACK_IN_QUEUE, "state": case((last_try, "failed"), else_="queued")},
                queue=BEFORE_THE_QUEUE,
                failures=Job.failures + case((can_be_cut, 0), else_=1),
                deaths=Job.deaths + 1,
                error_code="WORKER_LOST",
                error=case((last_try, _GIVEN_UP), else_="The worker that ran this job died."),
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

    def lose_calls(self, workers: Sequence[UUID]) -> None:
        """Mark calls of dead workers as lost, also those of jobs that had ended before."""
        if workers:
            self._session.execute(
                update(Attempt)
                .where(
                    Attempt.worker_id.in_(workers),
                    Attempt.state == AttemptState.STARTED,
                    # As in the index: the bill of a call under way is unknown.
                    Attempt.billing == Billing.UNKNOWN,
                )
                .values(state=AttemptState.LOST, finished_at=func.now())
                .execution_options(synchronize_session=False)
            )

    def lose_lone_calls(self, seconds: float) -> None:
        """Mark calls of no job as lost that began so long ago: their processes have died."""
        self._session.execute(
            update(Attempt)
            .where(
                Attempt.job_id.is_(None),
                Attempt.state == AttemptState.STARTED,
                Attempt.started_at < func.now() - timedelta(seconds=seconds),
            )
            .values(state=AttemptState.LOST, finished_at=func.now())
            .execution_options(synchronize_session=False)
        )

    def prune_jobs(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` jobs that ended `retention` seconds ago or before; how many."""
        old = (
            select(Job.id)
            .where(
                Job.finished_at.is_not(None),
                Job.finished_at < func.now() - timedelta(seconds=retention),
            )
            .order_by(Job.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("old")
            .prefix_with("MATERIALIZED")
        )
        deleted = self._session.scalars(
            delete(Job)
            .where(Job.id.in_(select(old.c.id)))
            .returning(Job.id)
            .execution_options(synchronize_session=False)
        )
        return len(deleted.all())

    def prune_attempts(self, retention: float, limit: int = 500) -> int:
        """Delete up to `limit` attempts of pruned jobs that began `retention` seconds ago."""
        old = (
            select(Attempt.id)
            .where(
                Attempt.job_id.is_(None),
                Attempt.started_at < func.now() - timedelta(seconds=retention),
            )
            .order_by(Attempt.started_at)
            .limit(limit)
        )
        deleted = self._session.scalars(
            delete(Attempt)
            .where(Attempt.id.in_(old))
            .returning(Attempt.id)
            .execution_options(synchronize_session=False)
        )
        return len(deleted.all())


_GIVEN_UP = func.concat(
    "The worker that ran this job died, after ",
    Job.failures,
    " failures before: it is not tried again by itself, as it may be what ends workers.",
)
