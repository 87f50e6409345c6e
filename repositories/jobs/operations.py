"""Operations: one step changes some of the jobs that a filter matches, and the account of it."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import contains_eager

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.jobs import (
    CANCELLED,
    OPEN_STATES,
    RETRIABLE_STATES,
    conditions_of,
    job_refs,
    reopened,
)
from promptstack.repositories.jobs.records import JobFilter, JobRef
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.operation_models import Operation, OperationAction
from promptstack.repositories.pages import Page, PageQuery, read_page

MAX_FAILURES = 100
"""Failures that are listed; all are counted."""
CHANGED_STATES = {OperationAction.RETRY: RETRIABLE_STATES, OperationAction.CANCEL: OPEN_STATES}
PART_OF_RUN = "It is a part of run {run}; {action} the run."


@dataclass(frozen=True)
class Step:
    """What a step has done."""

    changed: Sequence[JobRef]
    unheard: Set[UUID]
    """Those that no worker was told of."""
    is_last: bool


class OperationRepository(BaseRepository[Operation]):
    """Operations, each with its job."""

    model = Operation

    def add(self, operation_id: UUID, action: OperationAction, wanted: Mapping[str, Any]) -> None:
        """Add the account of a job that was added just now."""
        self.create(id=operation_id, action=action, wanted=dict(wanted))

    def find(self, operation_id: UUID) -> Operation | None:
        """An operation with its job."""
        query = select(Operation).join(Operation.job).options(contains_eager(Operation.job))
        return self._session.scalars(query.where(Operation.id == operation_id)).one_or_none()

    def page_of(self, user_id: UUID | None, asked: PageQuery) -> Page[Operation]:
        """A page of operations, newest first; only those of a user."""
        query = select(Operation).join(Operation.job)
        if user_id is not None:
            query = query.where(Job.user_id == user_id)
        loaded = [contains_eager(Operation.job)]
        return read_page(self._session, query, Operation.id, asked, options=loaded)

    def step(self, operation: Operation, wanted: JobFilter, *, lifetime: float, limit: int) -> Step:
        """Change the next jobs in the order of their ids; a retried one lives for `lifetime`.

        The caller holds the operation's job, so that one step at a time is done.
        """
        action = OperationAction(operation.action)
        matching = [*conditions_of(wanted), Job.created_at < operation.until]
        matching.append(Job.state.in_(CHANGED_STATES[action]))
        if action is OperationAction.CANCEL:
            matching.append(Job.finished_at.is_(None))  # as in the index of open jobs
        if operation.matched is None:
            operation.matched = self._count(matching)
        chosen = select(Job.id, Job.run_id, Job.published_at, Job.state).where(*matching)
        if operation.cursor is not None:
            chosen = chosen.where(Job.id > operation.cursor)
        chosen = chosen.order_by(Job.id).limit(limit).with_for_update()
        rows = self._session.execute(chosen).all()
        values = reopened(lifetime) if action is OperationAction.RETRY else CANCELLED
        alone = [row.id for row in rows if row.run_id is None]
        changed = job_refs(self._session, update(Job).where(Job.id.in_(alone)).values(**values))
        self._account(operation, len(changed), [row for row in rows if row.run_id is not None])
        if rows:
            operation.cursor = rows[-1].id
        is_last = len(rows) < limit
        if is_last:
            operation.skipped = max(0, operation.matched - operation.done - operation.failed)
        self._session.flush()
        waits = [row.id for row in rows if row.state == JobState.QUEUED]
        told = {row.id for row in rows if row.published_at is not None}
        return Step(changed, set(waits) - told, is_last)

    def _count(self, matching: Sequence[ColumnElement[bool]]) -> int:
        return self._session.scalar(select(func.count()).select_from(Job).where(*matching)) or 0

    @staticmethod
    def _account(operation: Operation, done: int, parts: Sequence[Any]) -> None:
        reasons = [
            {
                "job_id": str(row.id),
                "error": PART_OF_RUN.format(run=row.run_id, action=operation.action),
            }
            for row in parts
        ]
        operation.done += done
        operation.failed += len(reasons)
        operation.failures = [*operation.failures, *reasons][:MAX_FAILURES]
