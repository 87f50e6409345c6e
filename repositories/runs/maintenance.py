"""What maintenance asks of runs: the overdue, the abandoned, the half-ended and the old ones."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.run_models import PrunedRun, Run, RunState
from promptstack.repositories.runs.runs import is_open, open_shards


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
            self._session.execute(insert(PrunedRun).values(run_id=run_id))
            change_rows(self._session, delete(Run).where(Run.id == run_id))
        return run_id

    def next_pruned(self) -> UUID | None:
        """Return a deleted run that still has items."""
        return self._session.scalar(select(PrunedRun.run_id).limit(1))

    def forget_pruned(self, run_id: UUID) -> None:
        """Note that the items of a run are deleted."""
        change_rows(self._session, delete(PrunedRun).where(PrunedRun.run_id == run_id))
