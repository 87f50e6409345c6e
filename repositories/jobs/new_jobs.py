"""New jobs, one or many, added by one statement: an ORM's work for a row costs more than that."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.pool import PoolProxiedConnection

from promptstack.repositories.jobs.records import Accepted, NewJobRow
from promptstack.repositories.wire_values import array_literal, dump_jsonb

_GIVEN = {
    "id": "uuid",
    "kind": "text",
    "queue": "text",
    "provider": "text",
    "model": "text",
    "request": "jsonb",
    "request_hash": "text",
    "user_id": "uuid",
    "idempotency_key": "text",
    "max_retries": "integer",
    "lifetime": "double precision",
}
"""The fields of a `NewJobRow`, in their order."""
_COLUMNS = ", ".join(name for name in _GIVEN if name != "lifetime")
_ONE_ROW = f"(VALUES ({', '.join(f'%s::{kind}' for kind in _GIVEN.values())}))"
_MANY_ROWS = f"unnest({', '.join(f'%s::{kind}[]' for kind in _GIVEN.values())})"
_ADD = f"""
INSERT INTO jobs ({_COLUMNS}, expires_at, rung_epoch, rung_at)
SELECT {_COLUMNS}, now() + make_interval(secs => lifetime), %s::text,
    CASE WHEN %s::text IS NOT NULL THEN now() END
FROM {{rows}} AS given ({", ".join(_GIVEN)})
WHERE user_id IS NULL OR EXISTS (SELECT FROM users WHERE users.id = user_id)
ON CONFLICT DO NOTHING
RETURNING id, created_at, expires_at
"""  # noqa: S608 - names of our own
_ADD_ONE, _ADD_MANY = _ADD.format(rows=_ONE_ROW), _ADD.format(rows=_MANY_ROWS)
_FIND = "SELECT id, created_at, expires_at FROM jobs WHERE id = ANY (%s::uuid[])"


class NewJobRepository:
    """Adds jobs on a connection, within whatever transaction it is in."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def add(self, jobs: Sequence[NewJobRow], epoch: str | None = None) -> dict[UUID, Accepted]:
        """Add queued jobs; those that were added.

        With `epoch`, that of the broker, they are marked as published: their messages leave right
        after the commit. A job is left out whose caller has one of the same idempotency key, or
        whose user is not there.
        """
        if not jobs:
            return {}
        # In one order, so that two who add jobs of the same keys wait for each other one way.
        rows = [_values(job) for job in sorted(jobs, key=lambda job: job.idempotency_key or "")]
        marks = [epoch, epoch]
        if len(rows) == 1:
            return self._run(_ADD_ONE, [*marks, *rows[0]])
        return self._run(_ADD_MANY, [*marks, *map(array_literal, zip(*rows, strict=True))])

    def find(self, job_ids: Sequence[UUID]) -> dict[UUID, Accepted]:
        """Those of these jobs that are there."""
        return self._run(_FIND, [list(job_ids)])

    def _run(self, statement: str, values: list[Any]) -> dict[UUID, Accepted]:
        cursor = self._connection.cursor()
        try:
            cursor.execute(statement, values)
            rows = cursor.fetchall()
        finally:
            cursor.close()
        return {job_id: Accepted(*times) for job_id, *times in rows}


def _values(job: NewJobRow) -> list[Any]:
    values = {**vars(job), "request": dump_jsonb(job.request)}
    return [values[name] for name in _GIVEN]
