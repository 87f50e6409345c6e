"""The steps of many jobs at once, each kind in one statement: what `JobRepository` does for one.

Rows travel as one JSON document, which PostgreSQL takes apart.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from promptstack.config.names import Queue
from promptstack.repositories.jobs.jobs import Claim, Standing
from promptstack.repositories.jsonb import dump_jsonb

LOCK_MILLISECONDS = 200
"""Longest wait for a job that somebody else changes just now: the others can't wait for that."""


@dataclass(frozen=True)
class Asked:
    """A message for whose job a worker asks."""

    job_id: UUID
    rung_at: datetime | None


@dataclass(frozen=True)
class Beginning:
    """A call that is about to leave."""

    claim: Claim
    values: Mapping[str, Any]
    """Of its attempt: `call`, `provider`, `model`, `items`, and what is expected."""


@dataclass(frozen=True)
class Answered:
    """A call whose answer is a job's result."""

    claim: Claim
    attempt_id: int
    result: Mapping[str, object]
    took: Mapping[str, Any]
    """What the attempt came to; see `AttemptRepository.settle`."""


class JobBatchRepository:
    """Steps of many jobs in one transaction. What can't be done now is left out."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def limit_waiting(self) -> None:
        """Wait for no lock longer than a moment."""
        self._session.execute(_LIMIT)

    def claim(self, asked: Sequence[Asked], worker_id: UUID) -> dict[UUID, Claim]:
        """Take the queued jobs that are due; see `JobRepository.claim`."""
        rows = [{"id": ask.job_id, "sent_at": ask.rung_at} for ask in asked]
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
            )
            for row in found
        }

    def begin(self, beginnings: Sequence[Beginning]) -> dict[tuple[UUID, int], int]:
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

    def succeed(self, answers: Sequence[Answered]) -> dict[UUID, Standing]:
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
        return {row.id: Standing(**row._mapping) for row in self._run(_STANDING, mine)}

    def _run(self, statement: Any, rows: Sequence[Mapping[str, Any]], **others: Any) -> Any:
        return self._session.execute(statement, {"rows": dump_jsonb(rows, _plain), **others}).all()


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
    jobs.queue, jobs.run_id,
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

_STANDING = text("""
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
