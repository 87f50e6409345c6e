"""Attempts: what was asked of a provider, and what came of it."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert

from repositories.base import BaseRepository
from repositories.jobs import Claim
from repositories.models import Attempt, AttemptState


class AttemptRepository(BaseRepository[Attempt]):
    """One row a provider call, written before the request leaves."""

    model = Attempt

    def start(
        self,
        claim: Claim,
        *,
        call: int,
        provider: str,
        model: str,
        items: int,
        expected_tokens: int | None = None,
        expected_cost_usd: Decimal | None = None,
    ) -> int:
        """Record that a call is about to leave; the attempt's id. The same call twice is one."""
        row = insert(Attempt).values(
            job_id=claim.job_id,
            user_id=claim.user_id,
            number=claim.attempt,
            call=call,
            worker_id=claim.worker_id,
            provider=provider,
            model=model,
            items=items,
            expected_tokens=expected_tokens,
            expected_cost_usd=expected_cost_usd,
        )
        return self._session.execute(
            row.on_conflict_do_update(
                constraint="attempts_job_number_call_key", set_={"items": items}
            ).returning(Attempt.id)
        ).scalar_one()

    def settle(self, attempt_id: int, state: AttemptState, **outcome: Any) -> None:
        """Record what came of a call that was started."""
        self._session.execute(
            update(Attempt)
            .where(Attempt.id == attempt_id)
            .values(state=state, finished_at=func.now(), **outcome)
        )

    def totals(self, job_id: UUID) -> "Totals":
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


@dataclass(frozen=True)
class Totals:
    """Sums over a job's calls."""

    calls: int
    items: int
    """Items that calls answered."""
    tokens: int
