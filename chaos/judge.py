"""Judges what became of the load, by the provider's books and the database alone.

It reads the tables with SQL of its own and uses none of the product's code.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extras

from promptstack.chaos import recovery
from promptstack.chaos.attempts import BREAKS_CALLS, Attempt, is_under_way
from promptstack.chaos.driver import Happened
from promptstack.chaos.load import Accepted
from promptstack.chaos.plan import LOST_SECONDS, Fault
from promptstack.chaos.verdict import Verdict

WATCH = """
CREATE TABLE chaos_changes_after_the_end (job_id uuid, was text, became text, at timestamptz);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_changes_after_the_end VALUES (OLD.id, OLD.state, NEW.state, clock_timestamp());
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_watch AFTER UPDATE ON jobs FOR EACH ROW
  WHEN (OLD.finished_at IS NOT NULL AND
        (OLD.state <> NEW.state OR OLD.result IS DISTINCT FROM NEW.result
         AND OLD.result IS NOT NULL))
  EXECUTE FUNCTION chaos_note();
"""
UNWATCH = """
DROP TRIGGER IF EXISTS chaos_watch ON jobs;
DROP FUNCTION IF EXISTS chaos_note();
DROP TABLE IF EXISTS chaos_changes_after_the_end;
"""
MOVEMENT = """
SELECT count(*) FILTER (WHERE finished_at IS NULL), sum(attempt), sum(current), (
  SELECT count(*) FROM attempts WHERE state = 'started'), (SELECT max(id) FROM attempts)
FROM jobs WHERE created_at >= %s
"""
JOBS = "SELECT id, state, error_code, result ->> 'text' AS text FROM jobs WHERE id = ANY(%s)"
ATTEMPTS = (
    "SELECT job_id, number, worker_id, state, billing, started_at, finished_at FROM attempts "
    "WHERE job_id = ANY(%s) ORDER BY job_id, number, call"
)
CHANGES = "SELECT count(*) FROM chaos_changes_after_the_end WHERE job_id = ANY(%s)"
VECTORS = (
    "SELECT DISTINCT c.text FROM chunks c JOIN embeddings e ON e.content_hash = c.content_hash "
    "WHERE c.text = ANY(%s)"
)


class Judge:
    """Reads the database with a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn

    def watch(self) -> None:
        """From now on, let the database note every change of a job that has ended."""
        self._run(UNWATCH + WATCH)

    def unwatch(self) -> None:
        """Take that away again."""
        self._run(UNWATCH)

    def movement(self, since: datetime) -> tuple[object, ...]:
        """What changes while work goes on, of all jobs since then, those of runs too.

        Its first value is how many have not ended.
        """
        [row] = read(self._dsn, MOVEMENT, since)
        return row

    def open_jobs(self, ids: Sequence[UUID]) -> int:
        """How many of these have not ended."""
        query = "SELECT count(*) FROM jobs WHERE id = ANY(%s) AND finished_at IS NULL"
        [(count,)] = self._read(query, ids)
        return int(count)

    def states(self, ids: Sequence[UUID]) -> dict[UUID, str]:
        """The state of each."""
        return {row[0]: row[1] for row in self._read(JOBS, ids)}

    def judge(
        self,
        load: Sequence[Accepted],
        happened: Sequence[Happened],
        *,
        billed: Mapping[str, int] | None,
        slots: int,
        lost_seconds: float = LOST_SECONDS,
    ) -> Verdict:
        """Judge the load; `billed` are the simulator's books, `slots` the calls at once.

        `lost_seconds` is the heartbeat timeout.
        """
        ids = [job.id for job in load]
        found = {row[0]: row[1:] for row in self._read(JOBS, ids)}
        attempts = [Attempt(*row) for row in self._read(ATTEMPTS, ids)]
        succeeded = {id_ for id_, row in found.items() if row[0] == "succeeded"}
        open_ = sum(row[0] in {"queued", "running"} for row in found.values())
        verdict = Verdict(
            accepted=len(load),
            ended=dict(Counter(row[0] for row in found.values())),
            failures=dict(Counter(row[1] for row in found.values() if row[0] == "failed")),
            lost=len(load) - len(found),
            unfinished=open_,
            changed_after_end=int(self._read(CHANGES, ids)[0][0]),
            wrong=self._wrong(load, succeeded, {id_: row[2] for id_, row in found.items()}),
        )
        verdict.lost_seconds = lost_seconds
        verdict.recovery = recovery.measure(attempts, happened, slots)
        broken = [one for one in happened if one.fault in BREAKS_CALLS]
        verdict.in_flight_at_faults = sum(
            any(is_under_way(attempt, one) for one in broken) for attempt in attempts
        )
        verdict.hit = sum(
            any(is_under_way(attempt, one) for one in broken if one.fault is Fault.KILL)
            for attempt in attempts
            if attempt.state == "lost"
        )
        if billed is not None:
            _judge_bills(verdict, load, attempts, broken, billed)
            verdict.unbilled = sum(
                job.id in succeeded and not billed.get(job.billing_key) for job in load
            )
        return verdict

    def _wrong(
        self, load: Sequence[Accepted], succeeded: set[UUID], texts: Mapping[UUID, str | None]
    ) -> int:
        embedded = [job for job in load if job.is_embedding and job.id in succeeded]
        stored = {row[0] for row in self._read(VECTORS, [job.marker for job in embedded])}
        generated = [job for job in load if not job.is_embedding and job.id in succeeded]
        return sum(job.marker not in stored for job in embedded) + sum(
            job.marker not in (texts[job.id] or "") for job in generated
        )

    def _read(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        return read(self._dsn, query, list(values))

    def _run(self, statements: str) -> None:
        with psycopg2.connect(self._dsn) as connection, connection.cursor() as cursor:
            cursor.execute(statements)


def read(dsn: str, query: str, value: object) -> list[tuple[Any, ...]]:
    """Rows of a query with one parameter, on a connection of its own."""
    with psycopg2.connect(dsn) as connection, connection.cursor() as cursor:
        psycopg2.extras.register_uuid(None, connection)  # type: ignore[no-untyped-call]
        cursor.execute(query, (value,))
        return cursor.fetchall()


def _judge_bills(
    verdict: Verdict,
    load: Sequence[Accepted],
    attempts: Sequence[Attempt],
    broken: Sequence[Happened],
    billed: Mapping[str, int],
) -> None:
    of_job: dict[UUID, list[Attempt]] = {}
    for attempt in attempts:
        of_job.setdefault(attempt.job_id, []).append(attempt)
    verdict.calls_billed = sum(billed.get(job.billing_key, 0) for job in load)
    verdict.billed_twice = verdict.unrecorded = 0
    explained: Counter[str] = Counter()
    for job in load:
        extra = billed.get(job.billing_key, 0) - 1
        may_be_billed = [one for one in of_job.get(job.id, []) if one.billing != "not_billed"]
        verdict.unrecorded += max(0, extra + 1 - len(may_be_billed))
        if extra <= 0:
            continue
        verdict.billed_twice += extra
        # The answer that was kept needs no excuse; each one before it does.
        reasons = [
            reason
            for attempt in may_be_billed
            if attempt.state != "succeeded" or attempt is not may_be_billed[-1]
            if (reason := _reason(attempt, broken)) is not None
        ]
        explained.update(str(reason) for reason in reasons[:extra])
        if len(reasons) < extra:
            verdict.unexplained.append(job.id)
            verdict.details += [_told(attempt) for attempt in may_be_billed]
    verdict.billed_twice_by = dict(explained)


def _told(attempt: Attempt) -> str:
    until = "?" if attempt.finished_at is None else f"{attempt.finished_at:%H:%M:%S.%f}"
    return (
        f"job {attempt.job_id} attempt {attempt.number} by worker {attempt.worker_id}: "
        f"{attempt.state}, {attempt.started_at:%H:%M:%S.%f} to {until}"
    )


def _reason(attempt: Attempt, broken: Iterable[Happened]) -> Fault | None:
    return next((one.fault for one in broken if is_under_way(attempt, one)), None)
