"""Attempts: one row a provider call, written before the request leaves and settled after it."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import exists, func, select

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.records import BeginStep, Begun, Claim, Totals
from promptstack.repositories.models import Attempt, AttemptState, Billing, Job, JobState
from promptstack.repositories.wire_values import BatchStatement


class AttemptRepository(BaseRepository[Attempt]):
    """Calls to providers."""

    model = Attempt

    def begin(self, steps: Sequence[BeginStep]) -> dict[tuple[UUID, int], Begun]:
        """Record calls that are about to leave, by job and number of the call.

        Calls of lost claims are left out. The same call twice is one: a commit may have succeeded
        though its answer was lost.
        """
        rows = [
            {
                "job_id": step.claim.job_id,
                "number": step.claim.attempt,
                **vars(step.call),
            }
            for step in steps
        ]
        found = _BEGIN.run(self._session, rows)
        return {(row.job_id, row.call): Begun(row.id, row.is_new) for row in found}

    def begun(self, claim: Claim, calls: Sequence[int]) -> set[int]:
        """Those of the claim's calls that are on record."""
        query = select(Attempt.call).where(
            Attempt.job_id == claim.job_id,
            Attempt.number == claim.attempt,
            Attempt.call.in_(calls),
        )
        return set(self._session.scalars(query))

    def settle(self, attempt_id: int, state: AttemptState, **outcome: Any) -> None:
        """Record what came of one call."""
        self.settle_many([{"attempt_id": attempt_id, "state": state, **outcome}])

    def settle_many(self, settled: Sequence[Mapping[str, Any]]) -> set[int]:
        """Record what came of calls, each with its `attempt_id` and columns of `Attempt`.

        Returns the ids that it settled. An attempt that is settled already, with its bill, is left
        as it is.
        """
        rows = [{"billing": Billing.UNKNOWN, **outcome} for outcome in settled]
        return {row.id for row in _SETTLE.run(self._session, rows)} if rows else set()

    def are_under_way(self, run_id: UUID, *, but: UUID) -> bool:
        """Whether calls of a run are under way in other shards than the job `but`."""
        query = select(
            exists().where(
                Job.run_id == run_id,
                Job.id != but,
                Job.state == JobState.RUNNING,
                Attempt.job_id == Job.id,
                Attempt.number == Job.attempt,
                Attempt.state == AttemptState.STARTED,
            )
        )
        return bool(self._session.scalar(query))

    def count(self, job_id: UUID, error_code: str) -> int:
        """How many of a job's calls ended with this error."""
        query = select(func.count()).where(
            Attempt.job_id == job_id, Attempt.error_code == error_code
        )
        return self._session.scalar(query) or 0

    def totals(self, job_id: UUID) -> Totals:
        """What a job's calls came to, over all its attempts."""
        done = Attempt.state == AttemptState.SUCCEEDED
        tokens = func.coalesce(Attempt.input_tokens, 0) + func.coalesce(Attempt.output_tokens, 0)
        row = self._session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(Attempt.items).filter(done), 0),
                func.coalesce(func.sum(tokens), 0),
            ).where(Attempt.job_id == job_id)
        ).one()
        return Totals(*row)


# PostgreSQL sets xmax where it updated a row instead of adding one.
_BEGIN = BatchStatement(
    """
    job_id uuid, number integer, call integer, provider text, model text, items integer,
    expected_tokens integer, expected_cost_usd numeric""",
    """
, held AS (
    SELECT id, attempt, user_id, worker_id FROM jobs
    WHERE (id, attempt) IN (SELECT job_id, number FROM given) AND state = 'running'
    ORDER BY id FOR UPDATE
)
INSERT INTO attempts (user_id, worker_id, job_id, number, call, provider, model, items,
    expected_tokens, expected_cost_usd)
SELECT held.user_id, held.worker_id, given.*
FROM given JOIN held ON held.id = given.job_id AND held.attempt = given.number
ON CONFLICT ON CONSTRAINT attempts_job_number_call_key DO UPDATE SET items = excluded.items
RETURNING id, job_id, call, xmax = 0 AS is_new
""",
)

_SETTLE = BatchStatement(
    """
    attempt_id bigint, state text, billing text, input_tokens integer, output_tokens integer,
    cached_tokens integer, cost_usd numeric, latency_seconds float8, limiter_wait_seconds float8,
    provider_request_id text, error_code text, error text, detail text, note text""",
    """
UPDATE attempts SET
    state = given.state,
    billing = given.billing,
    input_tokens = given.input_tokens,
    output_tokens = given.output_tokens,
    cached_tokens = given.cached_tokens,
    cost_usd = given.cost_usd,
    latency_seconds = given.latency_seconds,
    limiter_wait_seconds = given.limiter_wait_seconds,
    provider_request_id = given.provider_request_id,
    error_code = given.error_code,
    error = given.error,
    detail = given.detail,
    note = given.note,
    finished_at = now()
FROM given
WHERE attempts.id = given.attempt_id AND attempts.billing = 'unknown'
    AND (attempts.state <> given.state OR given.billing <> 'unknown')
RETURNING attempts.id
""",
)
