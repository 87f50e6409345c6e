"""Attempts: what was asked of a provider, and what came of it."""

from typing import Any
from uuid import UUID

from sqlalchemy import func, select, update

from repositories.base import BaseRepository
from repositories.jobs import Claim
from repositories.models import Attempt, AttemptState


class AttemptRepository(BaseRepository[Attempt]):
    """One row a provider call, written before the request leaves."""

    model = Attempt

    def start(self, claim: Claim, *, call: int, items: int) -> int:
        """Record that a call is about to leave; the attempt's id."""
        return self.create(
            job_id=claim.job_id,
            number=claim.attempt,
            call=call,
            worker_id=claim.worker_id,
            provider=claim.provider,
            model=claim.model,
            items=items,
        ).id

    def settle(self, attempt_id: int, state: AttemptState, **outcome: Any) -> None:
        """Record what came of a call that was started."""
        self._session.execute(
            update(Attempt)
            .where(Attempt.id == attempt_id)
            .values(state=state, finished_at=func.now(), **outcome)
        )

    def count_of(self, job_id: UUID) -> int:
        """How many provider calls a job made."""
        query = select(func.count()).where(Attempt.job_id == job_id)
        return self._session.scalar(query) or 0
