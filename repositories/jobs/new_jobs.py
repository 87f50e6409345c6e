"""New jobs, one or many, added by one statement: an ORM's work for a row costs more than that."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from io import StringIO
from typing import Any
from uuid import UUID

from psycopg2.errors import UniqueViolation
from sqlalchemy.pool import PoolProxiedConnection

from promptstack.config.names import Queue
from promptstack.repositories.driver_errors import of_known_users
from promptstack.repositories.jobs.records import Accepted, NewJobRow, NewResponse
from promptstack.repositories.wire_values import array_literal, copy_line, written_for_jsonb

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
_AS_COLUMN = {"lifetime": "now() + make_interval(secs => {})", "tags": "{}::text[]"}
_COLUMNS = ", ".join(["expires_at" if name == "lifetime" else name for name in _GIVEN])


def _values(*places: str) -> str:
    """The columns of a row, from where its fields stand."""
    named = zip(_GIVEN, places, strict=True)
    return ", ".join([_AS_COLUMN.get(name, "{}").format(place) for name, place in named])


_ARRAYS = ", ".join([f"%s::{kind}[]" for kind in _GIVEN.values()])
_MARKS = "%s::text, CASE WHEN %s::text IS NOT NULL THEN now() END"
_BULK = ", ".join([f"'{queue}'" for queue in Queue if queue.is_bulk])
_IS_SENT = f"queue NOT IN ({_BULK})"
_MARKS_BY_QUEUE = (
    f"CASE WHEN {_IS_SENT} THEN %s::text END, "
    f"CASE WHEN {_IS_SENT} AND %s::text IS NOT NULL THEN now() END"
)
_HEAD = f"INSERT INTO jobs ({_COLUMNS}, rung_epoch, rung_at)"
_TAIL = "ON CONFLICT DO NOTHING RETURNING id, created_at, expires_at"
# PostgreSQL plans it in half the time that it takes for the other.
_ADD_ONE = f"{_HEAD} VALUES ({_values(*['%s'] * len(_GIVEN))}, {_MARKS}) {_TAIL}"
# One statement with the job: it costs a tenth of what a transaction does.
_ADD_RESPONSE = f"""
WITH added AS ({_ADD_ONE}), response AS (
    INSERT INTO responses (id, asked, turns_before, is_kept)
    SELECT id, %s::jsonb, %s::integer, %s::boolean FROM added
) SELECT id, created_at, expires_at FROM added
"""  # noqa: S608 - as below
_ADD_MANY = f"""
{_HEAD} SELECT {_values(*_GIVEN)}, {_MARKS_BY_QUEUE}
FROM unnest({_ARRAYS}) AS given ({", ".join(_GIVEN)}) {_TAIL}
"""  # noqa: S608 - names of our own
_REQUEST, _LIFETIME, _TAGS = map(list(_GIVEN).index, ("request", "lifetime", "tags"))
_COPY = f"COPY jobs ({_COLUMNS}, created_at, rung_epoch, rung_at) FROM STDIN"
_NOW = "SELECT now()"
_FIND = "SELECT id, created_at, expires_at FROM jobs WHERE id = ANY (%s::uuid[])"


COPIED_FROM = 100
"""Jobs of one call from which COPY takes half as long as INSERT."""
_SENT_AT_ONCE = 1 << 20


class NewJobRepository:
    """Adds jobs on a connection, within whatever transaction it is in."""

    def __init__(self, connection: PoolProxiedConnection) -> None:
        self._connection = connection

    def add(
        self,
        jobs: Sequence[NewJobRow],
        epoch: str | None = None,
        lock_seconds: float | None = None,
        response: NewResponse | None = None,
    ) -> dict[UUID, Accepted]:
        """Add queued jobs; those that were added. A single job may come with its `response`.

        With `epoch`, that of the broker, they are marked as published: their messages leave right
        after the commit. Bulk jobs are not, as they wait for their users' turns. A job is left out
        whose caller has one of the same idempotency key. Raises `UnknownUser`. A transaction that
        has used such a key and is not over is waited for, `lock_seconds` at most.
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
        limit = ""
        if lock_seconds is not None and any(row.idempotency_key for row in rows):
            limit = f"SET LOCAL lock_timeout = {int(lock_seconds * 1000)}; "
        if len(rows) == 1:
            marks = (None, None) if rows[0].queue.is_bulk else marks
            if response is None:
                return self._run(limit + _ADD_ONE, (*rows[0], *marks))
            asked, *others = response
            values = (*rows[0], *marks, written_for_jsonb(asked), *others)
            return self._run(limit + _ADD_RESPONSE, values)
        return self._run(limit + _ADD_MANY, (*marks, *map(array_literal, zip(*rows, strict=True))))

    def copy(self, jobs: Sequence[NewJobRow], epoch: str | None = None) -> dict[UUID, Accepted]:
        """Do as `add`, for many jobs in a transaction.

        COPY can't leave a row out. So where one is there already, all are added by `add`.
        """
        cursor = self._connection.cursor()
        try:
            cursor.execute(_NOW)
            [(now,)] = cursor.fetchall()
            added: dict[UUID, Accepted] = {}
            lines = "".join(_lines(jobs, epoch, now, added))
            cursor.execute("SAVEPOINT copied")
            try:
                with of_known_users():
                    cursor.copy_expert(_COPY, StringIO(lines), size=_SENT_AT_ONCE)
            except UniqueViolation:
                cursor.execute("ROLLBACK TO SAVEPOINT copied")
                return self.add(jobs, epoch)
        finally:
            cursor.close()
        return added

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


def _lines(
    jobs: Sequence[NewJobRow], epoch: str | None, now: datetime, added: dict[UUID, Accepted]
) -> Iterator[str]:
    """The rows of jobs for COPY, in the order of `add`; notes in `added` what they are given."""
    accepted: dict[float, Accepted] = {}
    deadlines: dict[float, str] = {}
    created_at = str(now)
    for job in sorted(jobs, key=lambda job: job.idempotency_key or ""):
        if job.lifetime not in accepted:
            accepted[job.lifetime] = Accepted(now, now + timedelta(seconds=job.lifetime))
            deadlines[job.lifetime] = str(accepted[job.lifetime].expires_at)
        added[job.id] = accepted[job.lifetime]
        columns: list[object] = list(job)
        columns[_REQUEST] = written_for_jsonb(job.request)
        columns[_LIFETIME] = deadlines[job.lifetime]
        columns[_TAGS] = array_literal(job.tags)
        is_sent = epoch is not None and not job.queue.is_bulk
        marks = (epoch, created_at) if is_sent else (None, None)
        yield copy_line((*columns, created_at, *marks))
