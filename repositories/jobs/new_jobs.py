"""New jobs, one or many, added by one statement: an ORM's work for a row costs more than that."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.pool import PoolProxiedConnection

from promptstack.config.names import Queue
from promptstack.repositories.driver_errors import of_known_users
from promptstack.repositories.jobs.records import Accepted, NewJobRow
from promptstack.repositories.wire_values import array_literal, written_for_jsonb

_GIVEN = {
    "id": "uuid",
    "kind": "text",
    "queue": "text",
    "provider": "text",
    "model": "text",
    "request": "jsonb",
    "request_hash": "text",
    "user_id": "uuid",
    "api_key_id": "uuid",
    "idempotency_key": "text",
    "max_retries": "integer",
    "webhook": "text",
    "lifetime": "double precision",
    "tags": "text",
}
"""The fields of a `NewJobRow`, in their order. Tags are an array as one text: PostgreSQL has no
array of arrays of several lengths."""
_COLUMNS = ", ".join([*list(_GIVEN)[:-2], "expires_at", "tags"])
_PLACES = ", ".join(["%s" for name in list(_GIVEN)[:-2]])
_VALUES = ", ".join(list(_GIVEN)[:-2])
_ARRAYS = ", ".join([f"%s::{kind}[]" for kind in _GIVEN.values()])
_MARKS = "%s::text, CASE WHEN %s::text IS NOT NULL THEN now() END"
_BULK = ", ".join([f"'{queue}'" for queue in Queue if queue.is_bulk])
_IS_SENT = f"queue NOT IN ({_BULK})"
_MARKS_BY_QUEUE = (
    f"CASE WHEN {_IS_SENT} THEN %s::text END, "
    f"CASE WHEN {_IS_SENT} AND %s::text IS NOT NULL THEN now() END"
)
_DEADLINE = "now() + make_interval(secs => {lifetime})"
_HEAD = f"INSERT INTO jobs ({_COLUMNS}, rung_epoch, rung_at)"
_TAIL = "ON CONFLICT DO NOTHING RETURNING id, created_at, expires_at"
# PostgreSQL plans it in half the time that it takes for the other.
_ADD_ONE = (
    f"{_HEAD} VALUES ({_PLACES}, {_DEADLINE.format(lifetime='%s')}, %s::text[], {_MARKS}) {_TAIL}"
)
_ADD_MANY = f"""
{_HEAD} SELECT {_VALUES}, {_DEADLINE.format(lifetime="lifetime")}, tags::text[], {_MARKS_BY_QUEUE}
FROM unnest({_ARRAYS}) AS given ({", ".join(_GIVEN)}) {_TAIL}
"""  # noqa: S608 - names of our own
_FIND = "SELECT id, created_at, expires_at FROM jobs WHERE id = ANY (%s::uuid[])"


class NewJobRepository:
    """Adds jobs on a connection, within whatever transaction it is in."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def add(self, jobs: Sequence[NewJobRow], epoch: str | None = None) -> dict[UUID, Accepted]:
        """Add queued jobs; those that were added.

        With `epoch`, that of the broker, they are marked as published: their messages leave right
        after the commit. Bulk jobs are not, as they wait for their users' turns. A job is left out
        whose caller has one of the same idempotency key. Raises `UnknownUser`.
        """
        if not jobs:
            return {}
        # In one order, so that two who add jobs of the same keys wait for each other one way.
        ordered = sorted(jobs, key=lambda job: job.idempotency_key or "")
        rows = [
            job._replace(request=written_for_jsonb(job.request), tags=array_literal(job.tags))
            for job in ordered
        ]
        marks = (epoch, epoch)
        if len(rows) == 1:
            marks = (None, None) if rows[0].queue.is_bulk else marks
            return self._run(_ADD_ONE, (*rows[0], *marks))
        return self._run(_ADD_MANY, (*marks, *map(array_literal, zip(*rows, strict=True))))

    def find(self, job_ids: Sequence[UUID]) -> dict[UUID, Accepted]:
        """Those of these jobs that are there."""
        return self._run(_FIND, (list(job_ids),))

    def _run(self, statement: str, values: Sequence[Any]) -> dict[UUID, Accepted]:
        cursor = self._connection.cursor()
        try:
            with of_known_users():
                cursor.execute(statement, values)
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return {job_id: Accepted(*times) for job_id, *times in rows}
