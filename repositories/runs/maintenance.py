"""What maintenance asks of runs: the overdue, the abandoned, the half-ended and the old ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, delete, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.run_models import PrunedRun, Run, RunState
from promptstack.repositories.runs.runs import is_open, open_shards


@dataclass(frozen=True)
class RunsToDelete:
    """Some runs that are to be deleted."""

    open: list[UUID]
    """They must be ended first."""
    ended: list[UUID]
    """All their jobs have ended, too: calls are under way no more, and the index is built again."""
    is_none: bool
    """Whether there are none at all."""


def _has_open_jobs() -> ColumnElement[bool]:
    return exists().where(Job.run_id == Run.id, Job.run_id.is_not(None), Job.finished_at.is_(None))


class RunMaintenanceRepository:
    """Finds runs that must be ended, and deletes old ones."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find_overdue(self) -> Sequence[UUID]:
        """Return runs whose deadline has passed before all their items were done."""
        is_undone = Run.succeeded + Run.failed < Run.total
        return self._session.scalars(
            select(Run.id).where(
                Run.finished_at.is_(None),
                or_(
                    Run.state == RunState.PREPARING, and_(Run.state == RunState.RUNNING, is_undone)
                ),
                Run.expires_at <= func.now(),
            )
        ).all()

    def find_abandoned(self, silence: float) -> Sequence[UUID]:
        """Return runs that are prepared, and whose reader noted nothing for `silence` seconds."""
        return self._session.scalars(
            select(Run.id).where(
                *is_open(RunState.PREPARING),
                Run.touched_at < func.now() - timedelta(seconds=silence),
            )
        ).all()

    def find_half_ended(self) -> Sequence[Run]:
        """Return ended runs that still have queued shards from before their end."""
        # From the shards, which are few, to the runs.
        query = (
            select(Run)
            .join(Job, Job.run_id == Run.id)
            .where(*open_shards(), Job.state == JobState.QUEUED, Job.created_at <= Run.finished_at)
        )
        return self._session.scalars(query).unique().all()

    def prune(self, retention: float) -> UUID | None:
        """Delete a run that ended at least `retention` seconds ago, if it isn't locked.

        Callers see it gone at once. Its items are deleted later, in batches.
        """
        run_id: UUID | None = self._session.scalar(
            select(Run.id)
            .where(Run.finished_at < func.now() - timedelta(seconds=retention))
            .order_by(Run.finished_at)
            .limit(1)
            # Somebody may just be about to retry it.
            .with_for_update(skip_locked=True)
        )
        if run_id is not None:
            self.drop(run_id)
        return run_id

    def drop(self, run_id: UUID, *, drops_vectors: bool = False) -> None:
        """Delete a run that has ended. Its items are deleted later, in batches.

        With `drops_vectors`, vectors go with them that nobody else uses. What is old goes without:
        a later run with the same texts does not pay for them again.
        """
        self._session.execute(insert(PrunedRun).values(run_id=run_id, drops_vectors=drops_vectors))
        change_rows(self._session, delete(Run).where(Run.id == run_id))

    def of_collection(self, collection_id: UUID, limit: int) -> RunsToDelete:
        """Runs of a collection that is being deleted."""
        rows = self._session.execute(
            select(Run.id, Run.finished_at.is_(None), _has_open_jobs())
            .where(Run.collection_id == collection_id)
            .order_by(Run.id)
            .limit(limit)
        ).all()
        return RunsToDelete(
            [id_ for id_, is_open, _ in rows if is_open],
            [id_ for id_, is_open, is_busy in rows if not is_open and not is_busy],
            not rows,
        )

    def is_busy(self, run_id: UUID) -> bool:
        """Whether an ended run still has jobs: calls under way, or one that builds its index."""
        query = select(_has_open_jobs()).where(Run.id == run_id)
        return bool(self._session.scalar(query))

    def has_shards(self, run_id: UUID) -> bool:
        """Whether an ended run still has calls under way."""
        query = select(Job.id).where(*open_shards(), Job.run_id == run_id).limit(1)
        return self._session.scalar(query) is not None

    def next_pruned(self) -> PrunedRun | None:
        """Return a deleted run that still has items."""
        return self._session.scalar(select(PrunedRun).limit(1))

    def forget_pruned(self, run_id: UUID) -> None:
        """Note that the items of a run are deleted."""
        change_rows(self._session, delete(PrunedRun).where(PrunedRun.run_id == run_id))
