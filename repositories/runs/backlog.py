"""The backlog of a model: what runs and jobs still have to ask it."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Integer, cast, func, select
from sqlalchemy.orm import Session

from promptstack.repositories.access_models import Tier, User
from promptstack.repositories.models import Job, JobKind
from promptstack.repositories.run_models import Item, Run, RunState
from promptstack.repositories.runs.runs import is_open

SAMPLE = 1_000
"""Items of a run whose sizes are looked at."""
_TIER = func.coalesce(User.tier, Tier.FREE)


class RunBacklog(NamedTuple):
    """What is left of a run."""

    user_id: UUID | None
    tier: str
    run_id: UUID
    kind: str
    expires_at: datetime
    left: int
    """Its open items."""
    paid: int
    """Its items that were paid for, of which these are the sums."""
    calls: int
    input_tokens: int
    output_tokens: int
    max_tokens: int | None


class JobBacklog(NamedTuple):
    """Jobs of a user that have not ended."""

    user_id: UUID | None
    tier: str
    kind: str
    jobs: int
    bytes: int
    """Of their requests, as they are stored: compressed where they are long."""


class BacklogRepository:
    """Reads what is left to do for a model."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def of_runs(self, provider: str, model: str) -> Sequence[RunBacklog]:
        """Return the running runs that ask this model."""
        rows = self._session.execute(
            select(
                Run.user_id,
                _TIER,
                Run.id,
                Run.kind,
                Run.expires_at,
                Run.total - Run.succeeded - Run.failed,
                Run.succeeded - Run.reused,
                Run.calls,
                Run.input_tokens,
                Run.output_tokens,
                cast(Run.parameters["max_tokens"].astext, Integer),
            )
            .outerjoin(User, User.id == Run.user_id)
            .where(Run.provider == provider, Run.model == model, *is_open(RunState.RUNNING))
        )
        return [RunBacklog(*row) for row in rows]

    def item_bytes(self, run_id: UUID) -> float:
        """Return the mean size of some items of a run."""
        some = select(Item.size).where(Item.run_id == run_id).limit(SAMPLE).subquery()
        return float(self._session.scalar(select(func.avg(some.c.size))) or 0)

    def of_jobs(self, provider: str, model: str) -> Sequence[JobBacklog]:
        """Return the jobs of callers that ask this model, by user and kind."""
        rows = self._session.execute(
            select(
                Job.user_id,
                _TIER,
                Job.kind,
                func.count(),
                func.sum(func.pg_column_size(Job.request)),
            )
            .outerjoin(User, User.id == Job.user_id)
            .where(
                Job.finished_at.is_(None),
                Job.run_id.is_(None),
                Job.provider == provider,
                Job.model == model,
                Job.kind.in_([JobKind.GENERATION, JobKind.EMBEDDING, JobKind.VECTORS]),
            )
            .group_by(Job.user_id, User.tier, Job.kind)
        )
        return [JobBacklog(*row) for row in rows]
