"""Steps of jobs: how a worker changes a job.

    queued ---claim---> running ---succeed---> succeeded
      ^                    |-------fail------> failed
      |                    |------expire-----> expired    by the worker that meets the deadline
      |<---retry_later-----|   waits until `not_before`
      |<-----release-------|   goes to another worker at once

Callers change jobs in `jobs.py`, the reconciler in `maintenance.py`:

    queued, running ---cancel---> cancelled
    failed, cancelled, expired ---reopen---> queued
    queued, running ---expire_overdue---> expired
    running ---free_lost---> queued, or failed after its last try

There are no other changes, and each is one conditional UPDATE. A worker changes a job only under
its claim: while the job's `attempt` is the one that it claimed. `claim` and `succeed` take batches;
a single step is a batch of one.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from sqlalchemy import Executable, Table, and_, bindparam, case, func, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.repositories.access_models import Tier
from promptstack.repositories.budgets.budgets import counts_calls_of
from promptstack.repositories.jobs.attempts import SETTLE, AttemptRepository, settled_row
from promptstack.repositories.jobs.jobs import BACK_IN_QUEUE, BEFORE_THE_QUEUE, EXPIRED
from promptstack.repositories.jobs.records import Claim, ClaimStep, JobSnapshot, SucceedStep
from promptstack.repositories.models import AttemptState, Job, JobKind, JobState
from promptstack.repositories.wire_values import BatchStatement, Exchange, dump_jsonb, read_request


class StepRepository:
    """Changes the states of jobs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def claim_batch(
        self, steps: Sequence[ClaimStep], worker_id: UUID, *, lock_seconds: float = 0.0
    ) -> dict[UUID, Claim]:
        """Take the queued jobs that are due, for a worker; the others are left out.

        Of two workers with a message of the same job, one gets the row. With `lock_seconds`,
        neither this nor what follows in the transaction waits longer for a lock.
        """
        rows = [{"id": step.job_id, "sent_at": step.published_at} for step in steps]
        return {
            row.id: Claim(
                job_id=row.id,
                attempt=row.attempt,
                worker_id=worker_id,
                user_id=row.user_id,
                provider=row.provider,
                model=row.model,
                request=request or {},
                failures=row.failures,
                max_retries=row.max_retries,
                deaths=row.deaths,
                is_bulk=Queue(row.queue).is_bulk,
                seconds_left=float(row.seconds_left),
                run_id=row.run_id,
                kind=JobKind(row.kind),
                tier=Tier(row.tier),
                is_checked=row.is_checked,
                is_readable=request is not None,
            )
            for row in _CLAIM.run(self._session, rows, lock_seconds=lock_seconds, worker=worker_id)
            for request in [read_request(row.request)]
        }

    def claim(
        self, job_id: UUID, worker_id: UUID, published_at: datetime | None = None
    ) -> Claim | None:
        """Take one job; None when it can't be taken now."""
        return self.claim_batch([ClaimStep(job_id, published_at)], worker_id).get(job_id)

    def succeed_batch(self, steps: Sequence[SucceedStep]) -> dict[UUID, JobSnapshot]:
        """Store answers with their attempts and end the jobs; how the jobs stand then.

        An answer is paid for, so it is also stored when its job was taken from the worker, as long
        as no other attempt has begun. A job that has ended keeps its state; `reopen` finds the
        answer.
        """
        results = [_result(step.claim, step.result) for step in steps]
        settled = [
            settled_row(
                {"attempt_id": step.attempt_id, "state": AttemptState.SUCCEEDED, **step.took}
            )
            for step in steps
        ]
        found = _ANSWER_AND_SETTLE.run(self._session, results, settled)
        AttemptRepository(self._session).note(found)
        return self._snapshots([step.claim.job_id for step in steps])

    def succeed(self, claim: Claim, result: Mapping[str, object]) -> None:
        """End a job whose work is stored already. Raises `ClaimLost`; then nothing is stored."""
        rows = _ANSWER.run(self._session, [_result(claim, result)])
        if not any(row.has_succeeded for row in rows):
            raise claim.lost()

    def snapshot(self, job_id: UUID) -> JobSnapshot | None:
        """Where a job stands, and what its calls came to."""
        return self._snapshots([job_id]).get(job_id)

    def _snapshots(self, job_ids: Sequence[UUID]) -> dict[UUID, JobSnapshot]:
        rows = _SNAPSHOT.run(self._session, [{"id": job_id} for job_id in job_ids])
        return {row.id: JobSnapshot(**row._mapping) for row in rows}

    def check_claim(self, claim: Claim) -> bool:
        """Lock its row while the claim holds; whether budgets count calls. Raises `ClaimLost`."""
        return bool(self._row(_CHECK_CLAIM, claim)[0])

    def set_progress(self, claim: Claim, current: int, total: int) -> None:
        """Record how many of the job's items are done. Raises `ClaimLost`."""
        self._row(_SET_PROGRESS, claim, the_current=current, the_total=total)

    def shard_of(self, claim: Claim) -> tuple[int, int, int]:
        """A shard's first and last position, and its deaths; locks its row. Raises `ClaimLost`."""
        row = self._row(_SHARD_OF, claim)
        return row[0], row[1], row[2]

    def narrow_shard(self, claim: Claim, first: int, last: int, deaths: int) -> None:
        """Leave a shard with these positions and deaths. Raises `ClaimLost`."""
        request = {"first": first, "last": last}
        self._row(_NARROW_SHARD, claim, the_request=request, the_deaths=deaths)

    def fail(self, claim: Claim, error_code: str, error: str, *, counts: bool = True) -> None:
        """End the job as failed; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change_held(
            claim,
            state=JobState.FAILED,
            failures=Job.failures + int(counts),
            error_code=error_code,
            error=error,
            finished_at=func.now(),
        )

    def expire(self, claim: Claim) -> None:
        """End the job as expired. Raises `ClaimLost`."""
        self._change_held(claim, **EXPIRED)

    def retry_later(
        self, claim: Claim, delay: float, error_code: str, error: str, *, counts: bool
    ) -> None:
        """Put the job back for `delay` seconds; `counts` uses up a retry. Raises `ClaimLost`."""
        self._change_held(
            claim,
            **BACK_IN_QUEUE,
            not_before=func.now() + timedelta(seconds=delay),
            failures=Job.failures + int(counts),
            error_code=error_code,
            error=error,
        )

    def release(self, job_id: UUID, attempt: int) -> bool:
        """Give a job back untried, for another worker to take at once; False if it wasn't held."""
        return self._changes(
            job_id, attempt, **BACK_IN_QUEUE, queue=BEFORE_THE_QUEUE, not_before=None
        )

    def _change_held(self, claim: Claim, **values: Any) -> None:
        if not self._changes(claim.job_id, claim.attempt, **values):
            raise claim.lost()

    def _changes(self, job_id: UUID, attempt: int, **values: Any) -> bool:
        held = (Job.id == job_id, Job.attempt == attempt, Job.state == JobState.RUNNING)
        changed = update(Job).where(*held).values(**values).returning(Job.id)
        return self._session.scalar(changed) is not None

    def _row(self, statement: Executable, claim: Claim, **values: Any) -> Any:
        """What a statement returns of the job's row while the claim holds."""
        of_claim = {"the_job": claim.job_id, "the_attempt": claim.attempt}
        row = self._session.execute(statement, {**of_claim, **values}).one_or_none()
        if row is None:
            raise claim.lost()
        return row


def _result(claim: Claim, result: Mapping[str, object]) -> dict[str, Any]:
    return {"id": claim.job_id, "attempt": claim.attempt, "result": dump_jsonb(dict(result))}


# Built once, which costs more than to run them. Batches lock jobs in the order of their ids, so
# that no two wait for each other.

_CLAIM = BatchStatement(
    "id uuid, sent_at timestamptz",
    """
, asked AS (
    SELECT jobs.id, given.sent_at FROM given JOIN jobs ON jobs.id = given.id
    WHERE jobs.state = 'queued' AND (jobs.not_before IS NULL OR jobs.not_before <= now())
        AND jobs.expires_at > now()
    ORDER BY jobs.id FOR UPDATE OF jobs
)
UPDATE jobs SET
    state = 'running',
    attempt = jobs.attempt + 1,
    worker_id = :worker,
    -- least() ignores NULL, and a message of unknown time must tell nothing.
    rung_at = CASE WHEN asked.sent_at IS NULL THEN NULL ELSE least(asked.sent_at, now()) END,
    not_before = NULL,
    started_at = coalesce(jobs.started_at, now())
FROM asked WHERE jobs.id = asked.id AND jobs.state = 'queued'
RETURNING jobs.id, jobs.attempt, jobs.user_id, jobs.provider, jobs.model,
    CAST(jobs.request AS text) AS request, jobs.failures, jobs.max_retries, jobs.deaths,
    jobs.queue, jobs.run_id, jobs.kind, jobs.is_checked,
    extract(epoch FROM jobs.expires_at - clock_timestamp()) AS seconds_left,
    coalesce((SELECT tier FROM users WHERE users.id = jobs.user_id), 'free') AS tier
""",
)

_IS_OPEN = "jobs.state IN ('queued', 'running')"
# A job that has ended keeps all but the answer.
_ANSWER = BatchStatement(
    "id uuid, attempt integer, result text",
    f"""
, answered AS (
    SELECT jobs.id, CAST(given.result AS jsonb) AS result
    FROM given JOIN jobs ON jobs.id = given.id AND jobs.attempt = given.attempt
    WHERE jobs.state <> 'succeeded'
    ORDER BY jobs.id FOR UPDATE OF jobs
)
UPDATE jobs SET
    state = CASE WHEN {_IS_OPEN} THEN 'succeeded' ELSE jobs.state END,
    rung_at = CASE WHEN jobs.state = 'queued' THEN NULL ELSE jobs.rung_at END,
    result = answered.result,
    current = CASE WHEN {_IS_OPEN} THEN jobs.total ELSE jobs.current END,
    error_code = CASE WHEN {_IS_OPEN} THEN NULL ELSE jobs.error_code END,
    error = CASE WHEN {_IS_OPEN} THEN NULL ELSE jobs.error END,
    not_before = CASE WHEN {_IS_OPEN} THEN NULL ELSE jobs.not_before END,
    finished_at = CASE WHEN {_IS_OPEN} THEN now() ELSE jobs.finished_at END
FROM answered WHERE jobs.id = answered.id
RETURNING jobs.id, jobs.state = 'succeeded' AS has_succeeded
""",  # noqa: S608 - names of our own
)
_ANSWER_AND_SETTLE = Exchange(_ANSWER, SETTLE)

_SNAPSHOT = BatchStatement(
    "id uuid",
    """
SELECT jobs.id, jobs.state, jobs.provider, jobs.model, jobs.current, jobs.total, jobs.attempt,
    jobs.failures, jobs.error_code, jobs.error, jobs.not_before, jobs.is_followed,
    CAST(extract(epoch FROM jobs.not_before - clock_timestamp()) AS float8) AS seconds_until_due,
    count(attempts.id) AS calls,
    coalesce(sum(coalesce(attempts.input_tokens, 0) + coalesce(attempts.output_tokens, 0)), 0)
        AS tokens
FROM given JOIN jobs ON jobs.id = given.id
LEFT JOIN attempts ON attempts.job_id = jobs.id
GROUP BY jobs.id
""",
)

_JOBS = cast("Table", Job.__table__)
_THE_CLAIM = (
    _JOBS.c.id == bindparam("the_job"),
    _JOBS.c.attempt == bindparam("the_attempt"),
    _JOBS.c.state == JobState.RUNNING,
)
_CHECK_CLAIM = select(counts_calls_of(_JOBS)).where(*_THE_CLAIM).with_for_update(of=_JOBS)

_CURRENT = bindparam("the_current", type_=_JOBS.c.current.type)
_TOTAL = bindparam("the_total", type_=_JOBS.c.total.type)
_IS_AS_BEFORE = and_(_JOBS.c.current == _CURRENT, _JOBS.c.total == _TOTAL)
_SET_PROGRESS = (
    update(_JOBS)
    .where(*_THE_CLAIM)
    # A job that gets on does not kill its workers.
    .values(current=_CURRENT, total=_TOTAL, deaths=case((_IS_AS_BEFORE, _JOBS.c.deaths), else_=0))
    .returning(_JOBS.c.id)
)

_FIRST, _LAST = (_JOBS.c.request[name].as_integer() for name in ("first", "last"))
_SHARD_OF = select(_FIRST, _LAST, _JOBS.c.deaths).where(*_THE_CLAIM).with_for_update()
_NARROW_SHARD = (
    update(_JOBS)
    .where(*_THE_CLAIM)
    .values(request=bindparam("the_request", type_=JSONB), deaths=bindparam("the_deaths"))
    .returning(_JOBS.c.id)
)
