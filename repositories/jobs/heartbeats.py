"""What a worker's heartbeat writes and reads every second, each by one statement."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy.pool import PoolProxiedConnection

from promptstack.repositories.limited_statement import SECONDS, limited

_BEAT = """
WITH beat AS (
    INSERT INTO workers (id, hostname, pid, providers)
    VALUES (%(id)s, %(hostname)s, %(pid)s, %(providers)s::text[])
    ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp()
)
SELECT count(*) FROM workers
WHERE id <> %(id)s AND heartbeat_at > now() - make_interval(secs => %(lost)s)
"""
_RUNNING_OF = """
SELECT id::text, attempt FROM jobs WHERE worker_id = %(id)s AND state = 'running'
"""


class HeartbeatRepository:
    """A worker's row, and the jobs that the ledger counts as its own."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def beat(
        self,
        worker_id: UUID,
        hostname: str,
        pid: int,
        *,
        providers: Sequence[str] | None = None,
        lost_seconds: float = 60.0,
        within: float = SECONDS,
    ) -> int:
        """Say that this worker is alive; how many are, this one included.

        Its row is written anew where it was swept away meanwhile.
        """
        given = {
            "id": str(worker_id),
            "hostname": hostname,
            "pid": pid,
            "providers": None if providers is None else list(providers),
            "lost": lost_seconds,
        }
        [(others,)] = limited(self._connection, within, _BEAT, given)
        return int(others) + 1

    def running_of(self, worker_id: UUID, *, within: float = SECONDS) -> dict[UUID, int]:
        """The jobs that the ledger says this worker runs, each with its attempt."""
        rows = limited(self._connection, within, _RUNNING_OF, {"id": str(worker_id)})
        return {UUID(job_id): attempt for job_id, attempt in rows}
