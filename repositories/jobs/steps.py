"""Jobs' steps: every change of state is one conditional UPDATE, here or in `maintenance.py`."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Float,
    Table,
    Update,
    and_,
    bindparam,
    case,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import (
    BeginStep,
    Claim,
    ClaimStep,
    EndedJobs,
    JobSnapshot,
    SucceedStep,
)
from promptstack.repositories.jsonb import dump_jsonb
from promptstack.repositories.models import Attempt, Job, JobKind, JobState

OPEN_STATES = (JobState.QUEUED, JobState.RUNNING)
RETRIABLE_STATES = (JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED)
LOCK_MILLISECONDS = 200
"""Longest wait of a batch for a job that another transaction changes: others wait for the batch."""


class StepRepository:
    """The steps of jobs, alone or in batches, which leave out what can't be done now."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(
        self, job_id: UUID, worker_id: UUID, published_at: datetime | None = None
    ) -> Claim | None:
        """Take a queued job that is due; None when it isn't there to take.

        One conditional UPDATE: of two workers with the same message, one gets the row.
        `published_at` is when that message was sent; see `OutboxRepository.take_unpublished`.
        """
        row = self._session.execute(
            CLAIM, {"the_job": job_id, "the_worker": worker_id, "sent_at": published_at}
        ).one_or_none()
        if row is None:
            return None
        return Claim(
            job_id=row.id,
            attempt=row.attempt,
            worker_id=worker_id,
            user_id=row.user_id,
            provider=row.provider,
            model=row.model,
            request=row.request,
            failures=row.failures,
            max_retries=row.max_retries,
            deaths=row.deaths,
            is_bulk=Queue(row.queue).is_bulk,
            run_id=row.run_id,
            seconds_left=float(row.seconds_left),
            kind=JobKind(row.kind),
        )

    def check_claim(self, claim: Claim) -> None:
        """Lock the job's row while the claim still holds. Raises `ClaimLost`."""
        if self._session.scalar(CHECK_CLAIM, _of(claim)) is None:
            raise _lost(claim)

    def set_progress(self, claim: Claim, current: int, total: int) -> None:
        """Record how many of the job's items are done. Raises `ClaimLost`."""
        values = {**_of(claim), "the_current": current, "the_total": total}
        if self._session.scalar(SET_PROGRESS, values) is None:
            raise _lost(claim)

    def shard_of(self, claim: Claim) -> tuple[int, int, int]:
        """A shard's first and last position, and its deaths; locks its row. Raises `ClaimLost`."""
        row = self._session.execute(SHARD_OF, _of(claim)).one_or_none()
        if row is None:
            raise _lost(claim)
        return row[0], row[1], row[2]

    def narrow_shard(self, claim: Claim, first: int, last: int, deaths: int) -> None:
        """Leave a shard with these positions, and so many deaths. Raises `ClaimLost`."""
        request = {"first": first, "last": last}
        values = {**_of(claim), "the_request": request, "the_deaths": deaths}
        if self._session.scalar(NARROW_SHARD, values) is None:
            raise _lost(claim)

    def succeed(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Store the result and end the job. Raises `ClaimLost`; then nothing is stored.

        Also where the job was taken from us and no other attempt has begun: the answer is paid
        for, and asking again would pay twice.
        """
        stored = self._session.scalar(SUCCEED, {**_of(claim), "the_result": dict(result)})
        if stored is None:
            raise _lost(claim)

    def keep_answer(self, claim: Claim, result: Mapping[str, object]) -> None:
        """Keep an answer that came when its attempt had been cancelled, given up or had expired.

        The job's state stays as it is. A retry finds the answer and pays no more: see `reopen`.
        """
        self._session.execute(
            update(Job)
            .where(
                Job.id == claim.job_id,
                Job.attempt == claim.attempt,
                Job.state.in_(RETRIABLE_STATES),
            )
            .values(result=dict(result))
        )

    def fail(self, claim: Claim, error_code: str, error: str, *, counts: bool = True) -> None:
        """End the job as failed; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change(
            claim,
            update(Job).values(
                state=JobState.FAILED,
                failures=Job.failures + (1 if counts else 0),
                error_code=error_code,
                error=error,
                finished_at=func.now(),
            ),
        )

    def expire(self, claim: Claim) -> None:
        """End the job as expired. Raises `ClaimLost`."""
        self._change(claim, update(Job).values(**EXPIRED))

    def retry_later(
        self, claim: Claim, delay: float, error_code: str, error: str, *, counts: bool
    ) -> None:
        """Put the job back for `delay` seconds; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change(
            claim,
            update(Job).values(
                **BACK_IN_QUEUE,
                not_before=func.now() + timedelta(seconds=delay),
                failures=Job.failures + (1 if counts else 0),
                error_code=error_code,
                error=error,
            ),
        )

    def release(self, job_id: UUID, attempt: int) -> bool:
        """Hand a job back untried, for another worker to take at once; False if it wasn't held."""
        return self._changes_one(
            update(Job)
            .where(*_held(job_id, attempt))
            .values(**BACK_IN_QUEUE, queue=BEFORE_THE_QUEUE, not_before=None)
        )

    def cancel(self, job_id: UUID) -> bool:
        """End a queued or running job as cancelled; False when it had ended already."""
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(OPEN_STATES))
            .values(
                state=JobState.CANCELLED,
                published_at=TAKEN_AT,
                finished_at=func.now(),
                not_before=None,
            )
        )

    def reopen(self, job_id: UUID, lifetime: float) -> bool:
        """Queue a failed, cancelled or expired job anew; False when it is none of these.

        Where its answer came when it had ended, that is its result now, and nothing is queued.
        """
        return self._changes_one(
            update(Job)
            .where(Job.id == job_id, Job.state.in_(RETRIABLE_STATES))
            .values(**_reopened(lifetime))
        )

    def reopen_many(self, ended: EndedJobs, lifetime: float, limit: int) -> Sequence[UUID]:
        """Do the same with up to `limit` jobs of these, the oldest first; their ids."""
        conditions = {
            "state": ended.state is not None and Job.state == ended.state,
            "user": ended.user_id is not None and Job.user_id == ended.user_id,
            "kind": ended.kind is not None and Job.kind == ended.kind,
            "provider": ended.provider is not None and Job.provider == ended.provider,
            "model": ended.model is not None and Job.model == ended.model,
            "error": ended.error_code is not None and Job.error_code == ended.error_code,
            "since": ended.since is not None and Job.finished_at >= ended.since,
        }
        chosen = (
            select(Job.id)
            .where(
                Job.finished_at.is_not(None),
                # What ends again while this goes on is not taken twice.
                Job.finished_at < ended.until,
                Job.state.in_(RETRIABLE_STATES),
                # A run sees to its parts itself.
                Job.run_id.is_(None),
                *(condition for condition in conditions.values() if condition is not False),
            )
            .order_by(Job.finished_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
            .cte("chosen")
            .prefix_with("MATERIALIZED")
        )
        return self._session.scalars(
            update(Job)
            .where(Job.id.in_(select(chosen.c.id)))
            .values(**_reopened(lifetime))
            .returning(Job.id)
            .execution_options(synchronize_session=False)
        ).all()

    def snapshot(self, job_id: UUID) -> JobSnapshot | None:
        """Where a job stands, and what its calls came to."""
        row = self._session.execute(_SNAPSHOT_ONE, {"the_job": job_id}).one_or_none()
        return None if row is None else JobSnapshot(**row._mapping)

    def _change(self, claim: Claim, statement: Update) -> None:
        if not self._changes_one(statement.where(*_held(claim.job_id, claim.attempt))):
            raise _lost(claim)

    def _changes_one(self, statement: Update) -> bool:
        return self._session.scalar(statement.returning(Job.id)) is not None

    def limit_waiting(self) -> None:
        """Wait for no lock longer than a moment."""
        self._session.execute(_LIMIT)

    def claim_batch(self, asked: Sequence[ClaimStep], worker_id: UUID) -> dict[UUID, Claim]:
        """Take the queued jobs that are due; see `JobRepository.claim`."""
        rows = [{"id": ask.job_id, "sent_at": ask.published_at} for ask in asked]
        found = self._run(_CLAIM, rows, worker=worker_id)
        return {
            row.id: Claim(
                job_id=row.id,
                attempt=row.attempt,
                worker_id=worker_id,
                user_id=row.user_id,
                provider=row.provider,
                model=row.model,
                request=json.loads(row.request),
                failures=row.failures,
                max_retries=row.max_retries,
                deaths=row.deaths,
                is_bulk=Queue(row.queue).is_bulk,
                seconds_left=float(row.seconds_left),
                run_id=row.run_id,
                kind=JobKind(row.kind),
            )
            for row in found
        }

    def begin_batch(self, beginnings: Sequence[BeginStep]) -> dict[tuple[UUID, int], int]:
        """Record calls of claims that hold; ids of attempts by job and number of the call."""
        rows = [
            {
                "job_id": beginning.claim.job_id,
                "user_id": beginning.claim.user_id,
                "number": beginning.claim.attempt,
                "worker_id": beginning.claim.worker_id,
                **beginning.values,
            }
            for beginning in beginnings
        ]
        return {(row.job_id, row.call): row.id for row in self._run(_BEGIN, rows)}

    def succeed_batch(self, answers: Sequence[SucceedStep]) -> dict[UUID, JobSnapshot]:
        """Store results with their attempts and end the jobs; how those stand that could be.

        See `JobRepository.succeed`.
        """
        rows = [
            {
                "id": answer.claim.job_id,
                "attempt": answer.claim.attempt,
                "result": answer.result,
                "attempt_id": answer.attempt_id,
                **answer.took,
            }
            for answer in answers
        ]
        stored = {row.id for row in self._run(_SUCCEED, rows)}
        mine = [row for row in rows if row["id"] in stored]
        if not mine:
            return {}
        self._run(_SETTLE, mine)
        return {row.id: JobSnapshot(**row._mapping) for row in self._run(_SNAPSHOT, mine)}

    def _run(self, statement: Any, rows: Sequence[Mapping[str, Any]], **others: Any) -> Any:
        return self._session.execute(statement, {"rows": dump_jsonb(rows, _plain), **others}).all()


TAKEN_AT = case((Job.state == JobState.RUNNING, Job.published_at))
"""When the job's message was sent, if it was taken: of a job that ends in the queue, it wasn't."""


BACK_IN_QUEUE: dict[str, Any] = {
    "state": JobState.QUEUED,
    "worker_id": None,
    "published_at": None,
    "published_epoch": None,
}


BEFORE_THE_QUEUE = case(
    (Job.queue.in_([queue for queue in Queue if queue.is_bulk]), Job.queue), else_=Queue.RESUMED
)
"""Where a job waits that was begun before: not behind all that came since."""


EXPIRED: dict[str, Any] = {
    "state": JobState.EXPIRED,
    "published_at": TAKEN_AT,
    "not_before": None,
    "finished_at": func.now(),
    "error_code": "EXPIRED",
    "error": "The job's deadline passed before it was done.",
}


def _reopened(lifetime: float) -> dict[str, Any]:
    is_answered = Job.result.is_not(None)
    return {
        **BACK_IN_QUEUE,
        "state": case((is_answered, JobState.SUCCEEDED), else_=JobState.QUEUED),
        "not_before": None,
        "failures": 0,
        "deaths": 0,
        "error_code": None,
        "error": None,
        "current": case((is_answered, Job.total), else_=Job.current),
        "finished_at": case((is_answered, func.now()), else_=None),
        "expires_at": func.now() + timedelta(seconds=lifetime),
    }


def _held(job_id: UUID, attempt: int) -> tuple[ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)


def _of(claim: Claim) -> dict[str, Any]:
    return {"the_job": claim.job_id, "the_attempt": claim.attempt}


def _lost(claim: Claim) -> ClaimLost:
    return ClaimLost(
        f"Attempt {claim.attempt} of job {claim.job_id} no longer holds the job; "
        "nothing was stored."
    )


_JOBS = cast("Table", Job.__table__)
_THE_CLAIM = (_JOBS.c.id == bindparam("the_job"), _JOBS.c.attempt == bindparam("the_attempt"))
_SENT_AT = bindparam("sent_at", type_=_JOBS.c.rung_at.type)

CLAIM = (
    update(_JOBS)
    .where(
        _JOBS.c.id == bindparam("the_job"),
        _JOBS.c.state == JobState.QUEUED,
        or_(_JOBS.c.not_before.is_(None), _JOBS.c.not_before <= func.now()),
        _JOBS.c.expires_at > func.now(),
    )
    .values(
        state=JobState.RUNNING,
        attempt=_JOBS.c.attempt + 1,
        worker_id=bindparam("the_worker"),
        # LEAST passes over NULL, and a message of unknown time must tell nothing.
        rung_at=case((_SENT_AT.is_(None), None), else_=func.least(_SENT_AT, func.now())),
        not_before=None,
        started_at=func.coalesce(_JOBS.c.started_at, func.now()),
    )
    .returning(
        _JOBS.c.id,
        _JOBS.c.attempt,
        _JOBS.c.user_id,
        _JOBS.c.provider,
        _JOBS.c.model,
        _JOBS.c.request,
        _JOBS.c.failures,
        _JOBS.c.max_retries,
        _JOBS.c.deaths,
        _JOBS.c.queue,
        _JOBS.c.run_id,
        _JOBS.c.kind,
        func.extract("epoch", _JOBS.c.expires_at - func.clock_timestamp()).label("seconds_left"),
    )
)

CHECK_CLAIM = (
    select(_JOBS.c.id).where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING).with_for_update()
)

_CURRENT = bindparam("the_current", type_=_JOBS.c.current.type)
_TOTAL = bindparam("the_total", type_=_JOBS.c.total.type)
_IS_AS_BEFORE = and_(_JOBS.c.current == _CURRENT, _JOBS.c.total == _TOTAL)
SET_PROGRESS = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .values(
        current=_CURRENT,
        total=_TOTAL,
        # What gets on does not kill its workers.
        deaths=case((_IS_AS_BEFORE, _JOBS.c.deaths), else_=0),
    )
    .returning(_JOBS.c.id)
)

SHARD_OF = (
    select(
        _JOBS.c.request["first"].as_integer(), _JOBS.c.request["last"].as_integer(), _JOBS.c.deaths
    )
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .with_for_update()
)

NARROW_SHARD = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state == JobState.RUNNING)
    .values(request=bindparam("the_request", type_=JSONB), deaths=bindparam("the_deaths"))
    .returning(_JOBS.c.id)
)

SUCCEED = (
    update(_JOBS)
    .where(*_THE_CLAIM, _JOBS.c.state.in_(OPEN_STATES))
    .values(
        state=JobState.SUCCEEDED,
        rung_at=TAKEN_AT,
        result=bindparam("the_result", type_=JSONB),
        current=_JOBS.c.total,
        error_code=None,
        error=None,
        not_before=None,
        finished_at=func.now(),
    )
    .returning(_JOBS.c.id)
)

_SNAPSHOT_ONE = (
    select(
        _JOBS.c.id,
        _JOBS.c.state,
        _JOBS.c.provider,
        _JOBS.c.model,
        _JOBS.c.current,
        _JOBS.c.total,
        _JOBS.c.attempt,
        _JOBS.c.failures,
        _JOBS.c.error_code,
        _JOBS.c.error,
        _JOBS.c.not_before,
        cast_to(func.extract("epoch", _JOBS.c.not_before - func.clock_timestamp()), Float).label(
            "seconds_until_due"
        ),
        func.count(Attempt.id).label("calls"),
        func.coalesce(
            func.sum(
                func.coalesce(Attempt.input_tokens, 0) + func.coalesce(Attempt.output_tokens, 0)
            ),
            0,
        ).label("tokens"),
    )
    .outerjoin(Attempt, Attempt.job_id == _JOBS.c.id)
    .where(_JOBS.c.id == bindparam("the_job"))
    .group_by(_JOBS.c.id)
)


def _plain(value: object) -> str:
    """UUIDs, times and decimals, as PostgreSQL reads them."""
    return value.isoformat() if isinstance(value, datetime) else str(value)


_LIMIT = text(f"SET LOCAL lock_timeout = {LOCK_MILLISECONDS}")

# In the order of their ids, as far as that can be asked for: so no two batches wait for each other.
_CLAIM = text("""
WITH asked AS (
    SELECT jobs.id, asked.sent_at
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS asked(id uuid, sent_at timestamptz)
    JOIN jobs ON jobs.id = asked.id
    WHERE jobs.state = 'queued' AND (jobs.not_before IS NULL OR jobs.not_before <= now())
        AND jobs.expires_at > now()
    ORDER BY jobs.id FOR UPDATE OF jobs
)
UPDATE jobs SET
    state = 'running',
    attempt = jobs.attempt + 1,
    worker_id = :worker,
    rung_at = CASE WHEN asked.sent_at IS NULL THEN NULL ELSE least(asked.sent_at, now()) END,
    not_before = NULL,
    started_at = coalesce(jobs.started_at, now())
FROM asked WHERE jobs.id = asked.id AND jobs.state = 'queued'
RETURNING jobs.id, jobs.attempt, jobs.user_id, jobs.provider, jobs.model,
    CAST(jobs.request AS text) AS request, jobs.failures, jobs.max_retries, jobs.deaths,
    jobs.queue, jobs.run_id, jobs.kind,
    extract(epoch FROM jobs.expires_at - clock_timestamp()) AS seconds_left
""")

_BEGIN = text("""
WITH begun AS (
    SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS begun(
        job_id uuid, user_id uuid, number integer, call integer, worker_id uuid, provider text,
        model text, items integer, expected_tokens integer, expected_cost_usd numeric)
), held AS (
    SELECT jobs.id FROM jobs JOIN begun ON jobs.id = begun.job_id AND jobs.attempt = begun.number
    WHERE jobs.state = 'running' ORDER BY jobs.id FOR UPDATE OF jobs
)
INSERT INTO attempts (job_id, user_id, number, call, worker_id, provider, model, items,
    expected_tokens, expected_cost_usd)
SELECT begun.* FROM begun WHERE begun.job_id IN (SELECT id FROM held)
ON CONFLICT ON CONSTRAINT attempts_job_number_call_key DO UPDATE SET items = excluded.items
RETURNING id, job_id, call
""")

_SUCCEED = text("""
WITH answered AS (
    SELECT jobs.id, answered.result
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS answered(
        id uuid, attempt integer, result jsonb)
    JOIN jobs ON jobs.id = answered.id AND jobs.attempt = answered.attempt
    WHERE jobs.state IN ('queued', 'running')
    ORDER BY jobs.id FOR UPDATE OF jobs
)
UPDATE jobs SET
    state = 'succeeded',
    rung_at = CASE WHEN jobs.state = 'running' THEN jobs.rung_at END,
    result = answered.result,
    current = jobs.total,
    error_code = NULL,
    error = NULL,
    not_before = NULL,
    finished_at = now()
FROM answered WHERE jobs.id = answered.id
RETURNING jobs.id
""")

_SETTLE = text("""
UPDATE attempts SET
    state = 'succeeded',
    billing = took.billing,
    input_tokens = took.input_tokens,
    output_tokens = took.output_tokens,
    cached_tokens = took.cached_tokens,
    cost_usd = took.cost_usd,
    latency_seconds = took.latency_seconds,
    limiter_wait_seconds = took.limiter_wait_seconds,
    provider_request_id = took.provider_request_id,
    note = took.note,
    finished_at = now()
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS took(
    attempt_id bigint, billing text, input_tokens integer, output_tokens integer,
    cached_tokens integer, cost_usd numeric, latency_seconds float8, limiter_wait_seconds float8,
    provider_request_id text, note text)
WHERE attempts.id = took.attempt_id
RETURNING attempts.id
""")

_SNAPSHOT = text("""
SELECT jobs.id, jobs.state, jobs.provider, jobs.model, jobs.current, jobs.total, jobs.attempt,
    jobs.failures, jobs.error_code, jobs.error, jobs.not_before,
    CAST(NULL AS float8) AS seconds_until_due,
    count(attempts.id) AS calls,
    coalesce(sum(coalesce(attempts.input_tokens, 0) + coalesce(attempts.output_tokens, 0)), 0)
        AS tokens
FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS ended(id uuid)
JOIN jobs ON jobs.id = ended.id
LEFT JOIN attempts ON attempts.job_id = jobs.id
GROUP BY jobs.id
""")
