"""The outbox: which jobs need a message, and which were sent one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, func, literal_column, or_, select, tuple_, union_all, update
from sqlalchemy import text as sql

from promptstack.config.names import RATE_LIMIT_WAIT, Queue
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.by_user import ring_of_users, taken_by_user
from promptstack.repositories.jobs.jobs import job_refs
from promptstack.repositories.jobs.records import JobRef
from promptstack.repositories.models import IS_NOT_HELD, Job, JobState

_WAITING = (Job.state == JobState.QUEUED, Job.error_code == RATE_LIMIT_WAIT)
NEARLY_DUE_SECONDS = 1.0
UNSURE_SECONDS = 4.0
"""What Redis may lose when it crashes: it writes its log to disk every second, or every two where
the disk is slow. One second more, as it tells its age in whole ones."""
RESTARTED_SECONDS = 60.0
"""How long after its start that is looked for."""
FRESH_SECONDS = 5.0
"""How long the caller of a new job gets to send its message before the reconciler does."""


class Waits(NamedTuple):
    """Jobs and shards of one model that lie in the queue until a time, for one reason."""

    provider: str
    model: str
    jobs: int
    error_code: str | None
    error: str | None
    """Of one of them."""
    first_at: datetime
    last_at: datetime


_OF_MODEL = (
    f"state = 'queued' AND error_code = '{RATE_LIMIT_WAIT}' "
    "AND provider = :provider AND model = :model"
)
_USERS_WAITING = sql(ring_of_users(_OF_MODEL))
_NOT_DUE = f"not_before > now() + make_interval(secs => {NEARLY_DUE_SECONDS})"
_TAKE_WAITING = sql(taken_by_user(f"{_OF_MODEL} AND {_NOT_DUE}", "not_before"))


class OutboxRepository(BaseRepository[Job]):
    """Which jobs need a message: messages may get lost."""

    model = Job

    def take_unpublished(
        self,
        epoch: str,
        *,
        idle_queues: Sequence[str],
        patience: float,
        limit: int,
        uptime: float | None = None,
    ) -> Sequence[JobRef]:
        """Mark due jobs that need a message as published in `epoch` and return them, sorted by age.

        One caller at a time: see `UnitOfWork.try_lock`.

        A job needs one when none was sent for it, when its message was sent in another epoch
        of the broker (whose queues are gone), or when it was sent over `patience` seconds ago
        and nothing waits in its queue any more, or `patience` before one that was taken, or just
        before the broker was started, `uptime` seconds ago: it may not have kept that.
        """
        patient = timedelta(seconds=patience)
        gone_before = self._last_taken(patient)
        for queue in idle_queues:
            gone_before[queue] = func.now() - patient
        # Bulk jobs that wait for their users' turns are sent by `BulkJobs`.
        unsent: list[ColumnElement[Any]] = [Job.published_at.is_(None), literal_column(IS_NOT_HELD)]
        in_time = func.now() - timedelta(seconds=FRESH_SECONDS)
        unsent_in_order = [Job.not_before]
        sent_in_order = [Job.published_epoch, Job.queue, Job.published_at]
        # Each reason is one range of one index, read in order. An OR over them, or no order, would
        # read the whole backlog.
        reasons: list[tuple[list[Any], list[ColumnElement[bool]]]] = [
            (
                unsent_in_order,
                # The enqueuer is about to publish a fresh one itself.
                [*unsent, Job.not_before.is_(None), or_(Job.created_at < in_time, Job.attempt > 0)],
            ),
            (unsent_in_order, [*unsent, Job.not_before <= func.now()]),
            (sent_in_order, [Job.published_epoch < epoch]),
            (sent_in_order, [Job.published_epoch > epoch]),
            *(
                (
                    sent_in_order,
                    [Job.published_epoch == epoch, Job.queue == queue, Job.published_at < before],
                )
                for queue, before in gone_before.items()
            ),
            *((sent_in_order, reason) for reason in _sent_before_a_restart(epoch, uptime)),
        ]
        found = union_all(
            *(
                select(Job.id)
                .where(Job.state == JobState.QUEUED, *reason)
                .order_by(*order)
                .limit(limit)
                for order, reason in reasons
            )
        ).subquery()
        due = (
            select(Job.id)
            .where(Job.id.in_(select(found.c.id)), Job.state == JobState.QUEUED)
            .limit(limit)
            .with_for_update(skip_locked=True)
            # Else PostgreSQL may run it again and again, and lock more than `limit`.
            .cte("due")
            .prefix_with("MATERIALIZED")
        )
        taken = job_refs(
            self._session,
            update(Job)
            .where(Job.id.in_(select(due.c.id)))
            .values(published_at=func.now(), published_epoch=epoch),
        )
        return sorted(taken, key=lambda job: job.created_at)

    def _last_taken(self, patience: timedelta) -> dict[str, Any]:
        """For each queue, when the last message was sent of those that were taken, less `patience`.

        Queues are first in, first out: what was sent before it and was not taken is gone.
        """
        query = select(func.max(Job.published_at)).where(
            Job.state != JobState.QUEUED, Job.published_at.is_not(None)
        )
        found = {
            str(queue): self._session.scalar(query.where(Job.queue == queue)) for queue in Queue
        }
        return {queue: sent_at - patience for queue, sent_at in found.items() if sent_at}

    def next_waiting(self, after: tuple[str, str]) -> tuple[str, str] | None:
        """The provider and model after this one for whose rate limit jobs wait.

        One step in an index: to list all would read every waiting job.
        """
        row = self._session.execute(
            select(Job.provider, Job.model)
            .where(*_WAITING, tuple_(Job.provider, Job.model) > after)
            .order_by(Job.provider, Job.model)
            .limit(1)
        ).one_or_none()
        return None if row is None else (row.provider, row.model)

    def waits(self, run_id: UUID | None, limit: int) -> Sequence[Waits]:
        """Jobs that wait for a time, all or those of a run; the largest group first."""
        count, due = func.count(), func.coalesce(Job.not_before, func.now())
        rows = self._session.execute(
            select(
                Job.provider, Job.model, count, Job.error_code, func.max(Job.error),
                func.min(due), func.max(due),
            )
            .where(Job.state == JobState.QUEUED, Job.not_before > func.now())
            .where(*([] if run_id is None else [Job.run_id == run_id]))
            .group_by(Job.provider, Job.model, Job.error_code)
            .order_by(count.desc(), Job.provider, Job.model, Job.error_code)
            .limit(limit)
        )  # fmt: skip
        return [Waits(*row) for row in rows]

    def users_waiting(self, provider: str, model: str, last: UUID, most: int) -> dict[UUID, str]:
        """Return up to `most` users whose jobs wait for this model's rate limit, with their tiers.

        Those after `last` come first; jobs without a user are those of the user 0.
        """
        given = {"provider": provider, "model": model, "last": last, "most": most}
        return {row[0]: row[1] for row in self._session.execute(_USERS_WAITING, given)}

    def call_back(
        self, provider: str, model: str, counts: Mapping[UUID, int]
    ) -> Mapping[UUID, int]:
        """Make so many jobs of each user due that wait for this model's rate limit; how many."""
        given = {
            "provider": provider,
            "model": model,
            "users": list(counts),
            "counts": list(counts.values()),
        }
        ids = self._session.scalars(_TAKE_WAITING, given).all()
        called = self._session.scalars(
            update(Job)
            .where(Job.id.in_(ids))
            .values(not_before=func.now())
            .returning(Job.user_id)
            .execution_options(synchronize_session=False)
        )
        return Counter(user or UUID(int=0) for user in called)

    def mark_published(self, sent: Sequence[tuple[UUID, int]], epoch: str) -> None:
        """Record messages that were sent for jobs at an attempt, unless a worker took them."""
        self._session.execute(
            update(Job)
            .where(tuple_(Job.id, Job.attempt).in_(sent), Job.state == JobState.QUEUED)
            .values(published_at=func.now(), published_epoch=epoch)
        )

    def mark_unpublished(self, job_ids: Sequence[UUID]) -> None:
        """Record that the jobs' messages could not be sent after all."""
        self._session.execute(
            update(Job)
            .where(Job.id.in_(job_ids), Job.state == JobState.QUEUED)
            .values(published_at=None, published_epoch=None)
        )


def _sent_before_a_restart(epoch: str, uptime: float | None) -> list[list[ColumnElement[bool]]]:
    if uptime is None or uptime > RESTARTED_SECONDS:
        return []
    started = func.now() - timedelta(seconds=uptime)
    unsure = timedelta(seconds=UNSURE_SECONDS)
    return [
        [
            Job.published_epoch == epoch,
            Job.queue == queue,
            Job.published_at > started - unsure,
            Job.published_at < started,
        ]
        for queue in Queue
    ]
