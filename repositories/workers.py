"""Workers, alive or dead by their heartbeat."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from repositories.base import BaseRepository
from repositories.models import Worker


class WorkerRepository(BaseRepository[Worker]):
    """One row a worker process."""

    model = Worker

    def beat(self, worker_id: UUID, hostname: str, pid: int) -> None:
        """Say that this worker is alive, also when its row was swept away meanwhile."""
        self._session.execute(
            insert(Worker)
            .values(id=worker_id, hostname=hostname, pid=pid)
            .on_conflict_do_update(
                index_elements=[Worker.id], set_={"heartbeat_at": func.clock_timestamp()}
            )
        )

    def refresh(self, worker_id: UUID) -> None:
        """Say that this worker is alive, if it is known."""
        self._session.execute(
            update(Worker).where(Worker.id == worker_id).values(heartbeat_at=func.clock_timestamp())
        )

    def leave(self, worker_id: UUID) -> None:
        """Forget a worker that shuts down in order."""
        self._session.execute(delete(Worker).where(Worker.id == worker_id))

    def count_alive(self, silence: float) -> int:
        """Workers heard from within `silence` seconds."""
        fresh = Worker.heartbeat_at > func.now() - timedelta(seconds=silence)
        return self._session.scalar(select(func.count()).where(fresh)) or 0

    def forget_dead(self, silence: float) -> Sequence[UUID]:
        """Sweep away workers that have been silent for `silence` seconds; which."""
        stale = Worker.heartbeat_at <= func.now() - timedelta(seconds=silence)
        return self._session.scalars(
            delete(Worker)
            .where(stale)
            .returning(Worker.id)
            .execution_options(synchronize_session=False)
        ).all()
