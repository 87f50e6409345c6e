"""Workers, alive or dead by their heartbeat."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, false, func, not_, select, text, update

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.models import Worker

# Built once: each worker runs them every second.
_COUNT_ALIVE = text(
    "SELECT count(*) FROM workers WHERE heartbeat_at > now() - make_interval(secs => :timeout)"
)

_LOOK = text(
    "SELECT now() AS now, coalesce((SELECT jsonb_agg(providers) FROM workers "
    "WHERE heartbeat_at > now() - make_interval(secs => :timeout)), '[]') AS providers"
)


class WorkerRepository(BaseRepository[Worker]):
    """One row a worker process."""

    model = Worker

    def refresh(self, worker_id: UUID) -> None:
        """Say that this worker is alive, if it is known."""
        self._session.execute(
            update(Worker).where(Worker.id == worker_id).values(heartbeat_at=func.clock_timestamp())
        )

    def leave(self, worker_id: UUID) -> None:
        """Forget a worker that shuts down in order."""
        self._session.execute(delete(Worker).where(Worker.id == worker_id))

    def count_alive(self, timeout: float) -> int:
        """Workers heard from within `timeout` seconds."""
        return self._session.scalar(_COUNT_ALIVE, {"timeout": timeout}) or 0

    def look(self, timeout: float) -> tuple[datetime, Sequence[Sequence[str] | None]]:
        """The database's time, and whom each worker can ask that was heard from; see `Worker`."""
        row = self._session.execute(_LOOK, {"timeout": timeout}).one()
        return row.now, row.providers

    def none_can_ask(self, provider: str, timeout: float) -> bool:
        """Whether workers are alive, and all have said that they have no key for a provider."""
        fresh = Worker.heartbeat_at > func.now() - timedelta(seconds=timeout)
        lacks = func.coalesce(not_(Worker.providers.any_() == provider), false())
        return bool(self._session.scalar(select(func.bool_and(lacks)).where(fresh)))

    def forget_dead(self, timeout: float) -> Sequence[UUID]:
        """Sweep away workers that have been silent for `timeout` seconds; which."""
        stale = Worker.heartbeat_at <= func.now() - timedelta(seconds=timeout)
        return self._session.scalars(
            delete(Worker)
            .where(stale)
            .returning(Worker.id)
            .execution_options(synchronize_session=False)
        ).all()
