"""Attempts: one row a provider call, written before the request leaves and settled after it."""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import Row, exists, func, select

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.budget_models import DEPLOYMENT
from promptstack.repositories.budgets.budgets import note_settled
from promptstack.repositories.budgets.spending import Owner, Settled
from promptstack.repositories.jobs.records import (
    BeginStep,
    Begun,
    CappedCall,
    Claim,
    NewCall,
    Totals,
)
from promptstack.repositories.models import Attempt, AttemptState, Billing, Job, JobState
from promptstack.repositories.wire_values import BatchStatement


class AttemptRepository(BaseRepository[Attempt]):
    """Calls to providers."""

    model = Attempt

    def begin(
        self, steps: Sequence[BeginStep], *, lock_seconds: float = 0.0
    ) -> dict[tuple[UUID, int], Begun]:
        """Record calls that are about to leave and that no budget counts.

        Returns what was recorded, by job and number of the call. Calls of lost claims are left out,
        and those of `find_capped`. The same call twice is one: a commit may have succeeded though
        its answer was lost. With `lock_seconds`, neither this nor what follows in the transaction
        waits longer for a lock.
        """
        rows = list(map(_row, steps))
        return _begun(_BEGIN.run(self._session, rows, lock_seconds=lock_seconds))

    def find_capped(self, steps: Sequence[BeginStep]) -> dict[tuple[UUID, int], CappedCall]:
        """Calls that `begin` left out as budgets count them; those of lost claims are left out."""
        found = _FIND_CAPPED.run(self._session, list(map(_row, steps)))
        return {
            (row.job_id, row.call): CappedCall(row.user_id, row.api_key_id, row.attempt_id)
            for row in found
        }

    def begin_reserved(
        self, reserved: Sequence[tuple[BeginStep, Decimal]], day: date
    ) -> dict[tuple[UUID, int], Begun]:
        """Record calls that budgets count at so much, on this day. Their jobs are locked."""
        rows = [{**_row(step), "reserved_usd": usd, "day": day} for step, usd in reserved]
        return _begun(_BEGIN_RESERVED.run(self._session, rows))

    def begin_alone(
        self,
        owner: Owner,
        call: NewCall,
        worker_id: UUID,
        reserved_usd: Decimal | None,
        day: date | None,
    ) -> int:
        """Record a call that belongs to no job. Budgets count it at so much, on this day."""
        row = {**vars(call), "user_id": owner.user_id, "api_key_id": owner.api_key_id}
        row |= {"worker_id": worker_id, "reserved_usd": reserved_usd, "day": day}
        [begun] = _BEGIN_ALONE.run(self._session, [row])
        id_: int = begun.id
        return id_

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
        if not settled:
            return set()
        return self.note(SETTLE.run(self._session, list(map(settled_row, settled))))

    def note(self, found: Sequence[Row[Any]]) -> set[int]:
        """Have budgets count what `SETTLE` has found; the ids of these attempts."""
        note_settled(
            self._session,
            [
                Settled(Owner(row.user_id, row.api_key_id), row.day, row.change_usd)
                for row in found
                if row.change_usd
            ],
        )
        return {row.id for row in found}

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


def _row(step: BeginStep) -> dict[str, Any]:
    return {"job_id": step.claim.job_id, "number": step.claim.attempt, **vars(step.call)}


def settled_row(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """A row for `SETTLE`: an attempt's id, and what came of it."""
    return {"billing": Billing.UNKNOWN, **outcome}


def _begun(rows: Sequence[Any]) -> dict[tuple[UUID, int], Begun]:
    return {(row.job_id, row.call): Begun(row.id, row.is_new) for row in rows}


_CALL = """
    job_id uuid, number integer, call integer, provider text, model text, items integer,
    expected_tokens integer, expected_cost_usd numeric"""
_COLUMNS = "job_id, number, call, provider, model, items, expected_tokens, expected_cost_usd"
# PostgreSQL sets xmax where it updated a row instead of adding one.
_OR_FIND = """
ON CONFLICT ON CONSTRAINT attempts_job_number_call_key DO UPDATE SET items = excluded.items
RETURNING id, job_id, call, xmax = 0 AS is_new
"""
# It looks for budgets itself, so that jobs without one need no other statement.
_BEGIN = BatchStatement(
    _CALL,
    f"""
, held AS (
    SELECT id, attempt, user_id, api_key_id, worker_id FROM jobs
    WHERE (id, attempt) IN (SELECT job_id, number FROM given) AND state = 'running'
        AND NOT EXISTS (SELECT FROM budgets
            WHERE subject IN (jobs.user_id, jobs.api_key_id, '{DEPLOYMENT}'))
    ORDER BY id FOR UPDATE
)
INSERT INTO attempts (user_id, api_key_id, worker_id, {_COLUMNS})
SELECT held.user_id, held.api_key_id, held.worker_id, given.*
FROM given JOIN held ON held.id = given.job_id AND held.attempt = given.number
{_OR_FIND}""",  # noqa: S608 - names of our own
)

_FIND_CAPPED = BatchStatement(
    "job_id uuid, number integer, call integer",
    """
SELECT given.job_id, given.call, jobs.user_id, jobs.api_key_id, attempts.id AS attempt_id
FROM given JOIN jobs ON jobs.id = given.job_id AND jobs.attempt = given.number
LEFT JOIN attempts ON attempts.job_id = given.job_id AND attempts.number = given.number
    AND attempts.call = given.call
WHERE jobs.state = 'running'
ORDER BY jobs.id FOR UPDATE OF jobs
""",
)

_BEGIN_RESERVED = BatchStatement(
    f"{_CALL}, reserved_usd numeric, day date",
    f"""
INSERT INTO attempts (user_id, api_key_id, worker_id, {_COLUMNS}, reserved_usd, started_at)
SELECT jobs.user_id, jobs.api_key_id, jobs.worker_id,
    given.{_COLUMNS.replace(" ", " given.")}, given.reserved_usd,
    greatest(now(), CAST(given.day AS timestamp) AT TIME ZONE 'UTC')
FROM given JOIN jobs ON jobs.id = given.job_id
{_OR_FIND}""",  # noqa: S608 - names of our own
)

_BEGIN_ALONE = BatchStatement(
    """
    user_id uuid, api_key_id uuid, worker_id uuid, provider text, model text, items integer,
    expected_tokens integer, expected_cost_usd numeric, reserved_usd numeric, day date""",
    """
INSERT INTO attempts (user_id, api_key_id, worker_id, number, call, provider, model, items,
    expected_tokens, expected_cost_usd, reserved_usd, started_at)
SELECT user_id, api_key_id, worker_id, 0, 0, provider, model, items, expected_tokens,
    expected_cost_usd, reserved_usd,
    greatest(now(), CAST(day AS timestamp) AT TIME ZONE 'UTC')
FROM given RETURNING id
""",
)

SETTLE = BatchStatement(
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
RETURNING attempts.id, attempts.user_id, attempts.api_key_id,
    CAST(attempts.started_at AT TIME ZONE 'UTC' AS date) AS day,
    CASE WHEN attempts.billing <> 'unknown' THEN attempts.cost_usd - attempts.reserved_usd END
        AS change_usd
""",
)
