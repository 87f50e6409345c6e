"""The judge: what became of the load, by the provider's books and the database alone.

It shares no code with the product but the words for faults, and reads the tables by its own SQL.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise
from math import ceil
from statistics import median
from typing import Any
from uuid import UUID

import psycopg2
import psycopg2.extras

from promptstack.chaos.driver import Happened
from promptstack.chaos.load import Accepted
from promptstack.chaos.plan import LOST_SECONDS, Fault

CLOCKS = timedelta(seconds=0.25)
"""How far our clock may be from the database's, and a signal from its record."""
BREAKS_CALLS = frozenset({Fault.KILL, Fault.STOP, Fault.TERM, Fault.PARTITION})
"""The faults of one worker, whose calls under way are paid for and lost."""
LOSES_MESSAGES = frozenset({Fault.FLUSH, Fault.REDIS_KILL, Fault.REDIS_REPLACE})
STOPS_LEDGER = frozenset({Fault.POSTGRES_KILL, Fault.POSTGRES_RESTART})
LEDGER_AWAY = STOPS_LEDGER | {Fault.POSTGRES_FULL}
"""While it takes no writes, no heartbeat can be sent and no job freed."""
FREE = "a killed worker's job was free"
FREE_MOST_SECONDS, FREE_LONGEST_SECONDS = 8.0, 18.0
"""How long after a worker counts as dead its jobs may wait: 99 of 100, and all of them."""

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


@dataclass(frozen=True)
class Attempt:
    """A provider call, as the ledger has it."""

    job_id: UUID
    number: int
    worker_id: UUID
    state: str
    billing: str
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Spans:
    """How long something took, in seconds."""

    count: int
    median: float
    most: float
    """99 of 100 took no longer."""
    longest: float

    @classmethod
    def of(cls, spans: Sequence[float]) -> "Spans":
        """Sum them up; there must be some."""
        ordered = sorted(spans)
        return cls(
            len(ordered),
            median(ordered),
            ordered[ceil(0.99 * (len(ordered) - 1))],
            ordered[-1],
        )


@dataclass
class Verdict:
    """What became of the load."""

    accepted: int
    ended: dict[str, int]
    """Jobs by their state."""
    failures: dict[str, int]
    """Failed jobs by their error code."""
    lost: int
    """Accepted jobs that are not there."""
    unfinished: int
    """Accepted jobs that have not ended, and nothing moves any more."""
    changed_after_end: int
    """Results or states that were changed when the job had ended: doubled results."""
    wrong: int
    """Successes whose answer is missing or another job's."""
    calls_billed: int | None = None
    billed_twice: int | None = None
    """Calls billed beyond the first of their job. None where nobody keeps the provider's books."""
    unrecorded: int | None = None
    """Calls that were billed and have no attempt in the ledger."""
    unbilled: int | None = None
    """Successes that the provider's books don't have: these are not the books of this load."""
    billed_twice_by: dict[str, int] = field(default_factory=dict)
    """Those calls by the fault that broke the call before them."""
    unexplained: list[UUID] = field(default_factory=list)
    """Jobs that were billed twice with no fault to explain it."""
    details: list[str] = field(default_factory=list)
    """The calls of these jobs."""
    in_flight_at_faults: int = 0
    """Calls under way at a worker when it was killed, frozen, stopped, or cut off."""
    recovery: dict[str, Spans] = field(default_factory=dict)
    """How long work stood still, by what it waited for."""
    lost_seconds: float = LOST_SECONDS
    """The silence after which a worker counts as dead."""
    hit: int = 0
    """Calls that were lost as their worker was killed."""
    rebuilt: int = 0
    """Jobs whose progress in Redis agrees with the database."""

    def problems(self) -> list[str]:
        """Say what must not be, in words; empty where all is well."""
        succeeded = self.ended.get("succeeded", 0)
        found = {
            "no job succeeded, which shows nothing": not succeeded,
            f"{self.lost} accepted jobs are lost": self.lost,
            f"{self.unfinished} accepted jobs have not ended": self.unfinished,
            f"{self.changed_after_end} jobs changed after their end": self.changed_after_end,
            f"{self.wrong} answers are missing or another job's": self.wrong,
            f"{self.unrecorded} billed calls are not on record": self.unrecorded,
            f"{self.unbilled} answers are not on the provider's books": self.unbilled,
            f"{len(self.unexplained)} jobs were billed twice for no fault": len(self.unexplained),
            f"{self.billed_twice} calls billed twice, {self.in_flight_at_faults} in flight": max(
                0, (self.billed_twice or 0) - self.in_flight_at_faults
            ),
            f"the progress of {self.accepted - self.rebuilt} jobs is wrong": self.accepted
            - self.rebuilt,
        }
        return [*(words for words, count in found.items() if count), *self._late()]

    def _late(self) -> list[str]:
        free = self.recovery.get(FREE)
        if free is None:
            return [f"of {self.hit} jobs of killed workers none was measured"] if self.hit else []
        most = self.lost_seconds + FREE_MOST_SECONDS
        longest = self.lost_seconds + FREE_LONGEST_SECONDS
        found = {
            f"1 of 100 jobs of killed workers was free after {free.most:.1f} s, not within "
            f"{most:.0f} s": free.most > most,
            f"a job of a killed worker was free after {free.longest:.1f} s, not within "
            f"{longest:.0f} s": free.longest > longest,
        }
        return [words for words, is_so in found.items() if is_so]


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

        `lost_seconds` is the silence after which a worker counts as dead.
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
        verdict.recovery = _recovery(attempts, happened, slots)
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


def is_under_way(attempt: Attempt, fault: Happened) -> bool:
    """Whether the fault hit the worker that made the call, while it did."""
    return (
        attempt.worker_id == fault.worker_id
        and attempt.started_at - CLOCKS <= fault.ended
        and (attempt.finished_at is None or attempt.finished_at + CLOCKS >= fault.began)
        and attempt.started_at <= fault.began + CLOCKS
    )


def _recovery(
    attempts: Sequence[Attempt], happened: Sequence[Happened], slots: int
) -> dict[str, Spans]:
    """Measure how long work stood still."""
    starts = sorted(attempt.started_at for attempt in attempts)
    found: dict[str, list[float]] = {}

    def note(what: str, seconds: float) -> None:
        found.setdefault(what, []).append(seconds)

    killed = {one.worker_id: one for one in happened if one.fault is Fault.KILL}
    by_job: dict[UUID, list[Attempt]] = {}
    for attempt in attempts:
        by_job.setdefault(attempt.job_id, []).append(attempt)
    for calls in by_job.values():
        for lost, again in pairwise(calls):
            kill = killed.get(lost.worker_id)
            if kill is not None and lost.state == "lost" and lost.finished_at is not None:
                free = _seconds(lost.finished_at - kill.began)
                note(FREE, free - _away(happened, kill.began, lost.finished_at))
                note("a killed worker's job ran again", _seconds(again.started_at - kill.began))
    for one in happened:
        # As many as could have been taken off the queue before: the next one is news.
        later = [start for start in starts if start > one.ended][: slots + 1]
        if len(later) > slots:
            seconds = _seconds(later[-1] - one.ended)
            if one.fault in LOSES_MESSAGES:
                note("the queue moved after Redis lost it or was away", seconds)
            if one.fault in STOPS_LEDGER:
                note("the queue moved after PostgreSQL was back", seconds)
    return {what: Spans.of(spans) for what, spans in found.items()}


def _away(happened: Sequence[Happened], began: datetime, ended: datetime) -> float:
    """Seconds between two times in which the ledger itself was away."""
    total, until = 0.0, began
    for one in sorted(happened, key=lambda one: one.began):
        if one.fault in LEDGER_AWAY:
            since = max(one.began, until)
            until = max(until, min(one.ended, ended))
            total += max(0.0, _seconds(until - since))
    return total


def _seconds(span: timedelta) -> float:
    return span.total_seconds()
