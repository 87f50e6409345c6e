"""What the scheduler asks of runs: which gets the next shard, and which are done or failing."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, Select, exists, false, func, or_, select
from sqlalchemy.orm import Session

from promptstack.repositories.access_models import Tier, User
from promptstack.repositories.jobs.jobs import RETRIABLE_STATES
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.runs.runs import is_open, open_shards


@dataclass(frozen=True)
class Shard:
    """A shard that did not succeed."""

    first: int
    last: int
    state: str
    error_code: str | None
    error: str | None


class UserShards(NamedTuple):
    """The shards that a user has in workers, or on the way to them."""

    tier: str
    shards: int


PATIENCE = 0.01
"""A part of the time that a run has left. Of a day it is a quarter of an hour."""
_TIER = func.coalesce(User.tier, Tier.FREE)


@dataclass(frozen=True)
class Failing:
    """A run with a shard that failed by an error that ends the run."""

    run_id: UUID
    started_at: datetime
    error_code: str
    error: str


class SchedulingRepository:
    """Reads runs together with their shards. It changes neither."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def working_shards(self) -> dict[UUID | None, UserShards]:
        """Return how many shards of each user are running, or queued and due."""
        query = (
            select(Job.user_id, _TIER, func.count())
            .outerjoin(User, User.id == Job.user_id)
            .where(*open_shards(), ~_waits())
            .group_by(Job.user_id, User.tier)
        )
        return {row[0]: UserShards(*row[1:]) for row in self._session.execute(query)}

    def users_to_serve(
        self, own_wait: str, max_waiting: int, but: Collection[UUID] = ()
    ) -> dict[UUID | None, str]:
        """Return whose runs can get a shard now, with their tiers; see `next_to_serve`."""
        query = (
            select(Run.user_id, _TIER)
            .outerjoin(User, User.id == Run.user_id)
            # Found at once, as all runs are asked about: a look for each would be thousands.
            .where(*_is_unserved(but), Run.id.not_in(_waiting(own_wait, max_waiting)))
            .distinct()
        )
        return {row[0]: row[1] for row in self._session.execute(query)}

    def next_to_serve(
        self,
        user_id: UUID | None,
        own_wait: str,
        max_waiting: int,
        but: Collection[UUID] = (),
    ) -> Run | None:
        """Return the user's run that gets the next shard: its shard is due first.

        A shard is due when the run has waited for `PATIENCE` of the time it has left, for this
        shard and for each that it has already. So of runs with about the same deadline the one
        with the fewest shards is next, and of these the one that waits longest. One whose deadline
        is much nearer goes before them, but no run waits for ever.

        A run is left out if one of its shards waits, for example for a rate limit: another shard
        would wait too. Shards that wait with the error code `own_wait` don't count as that, up to
        `max_waiting` of them. So is one that somebody else has locked.
        """
        shards = select(func.count()).where(*open_shards(), Job.run_id == Run.id)
        waiting = _waiting(own_wait, max_waiting).where(Job.run_id == Run.id).correlate(Run)
        return self._session.scalars(
            select(Run)
            .where(
                Run.user_id.is_(None) if user_id is None else Run.user_id == user_id,
                *_is_unserved(but),
                ~waiting.exists(),
            )
            .order_by(_due(shards.correlate(Run).scalar_subquery()))
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()

    def find_done(self, run_id: UUID | None = None) -> Sequence[UUID]:
        """Return running runs whose items all belong to ended shards; or only this one, if so."""
        return self._session.scalars(
            select(Run.id).where(
                *_is(run_id),
                *is_open(RunState.RUNNING),
                Run.next_position > Run.last_position,
                ~exists().where(*open_shards(), Job.run_id == Run.id),
            )
        ).all()

    def find_unfinalized(self, run_id: UUID | None = None) -> Sequence[UUID]:
        """Return finalizing runs that no job finalizes; or only this one, if it is one."""
        is_worked_on = exists().where(
            Job.run_id == Run.id, Job.kind == JobKind.FINALIZATION, Job.finished_at.is_(None)
        )
        return self._session.scalars(
            select(Run.id).where(*_is(run_id), *is_open(RunState.FINALIZING), ~is_worked_on)
        ).all()

    def failed_finalizations(self, run: Run) -> Sequence[Job]:
        """Return the finalizations of a run's last start that failed."""
        query = select(Job).where(*_failed(run, JobKind.FINALIZATION)).order_by(Job.id)
        return self._session.scalars(query).all()

    def failed_shards(self, run: Run) -> list[Shard]:
        """Return the shards of a run's last start that did not succeed."""
        rows = self._session.execute(
            select(
                Job.request["first"].as_integer(),
                Job.request["last"].as_integer(),
                Job.state,
                Job.error_code,
                Job.error,
            ).where(*_failed(run, JobKind.SHARD))
        )
        return [Shard(*row) for row in rows]

    def find_failing(self, error_codes: Sequence[str]) -> list[Failing]:
        """Return running runs with a shard that failed by an error that ends the run."""
        rows = self._session.execute(
            select(Run.id, Run.started_at, Job.error_code, Job.error)
            .join(Job, Job.run_id == Run.id)
            .where(
                *is_open(RunState.RUNNING),
                Job.kind == JobKind.SHARD,
                Job.created_at >= Run.started_at,
                Job.state == JobState.FAILED,
                Job.error_code.in_(error_codes),
            )
        )
        found = {
            row[0]: Failing(row[0], row[1], str(row[2]), str(row[3])) for row in rows if row[1]
        }
        return list(found.values())

    def queued_shards(self, run: Run) -> Sequence[UUID]:
        """Return the queued shards of an ended run, without those of a later start."""
        query = select(Job.id).where(
            *open_shards(),
            Job.run_id == run.id,
            Job.state == JobState.QUEUED,
            Job.created_at <= run.finished_at,
        )
        return self._session.scalars(query).all()

    def loads_vectors(self, provider: str, model: str, *, but: UUID) -> bool:
        """Whether another running run adds vectors of the model."""
        query = select(
            exists().where(
                Run.provider == provider,
                Run.model == model,
                *is_open(RunState.RUNNING),
                Run.id != but,
            )
        )
        return bool(self._session.scalar(query))


def _due(shards: ColumnElement[int]) -> ColumnElement[datetime]:
    left = func.greatest(Run.expires_at - func.now(), timedelta(0))
    return Run.served_at + left * ((shards + 1) * PATIENCE)


def _is(run_id: UUID | None) -> list[ColumnElement[bool]]:
    return [] if run_id is None else [Run.id == run_id]


def _failed(run: Run, kind: JobKind) -> list[ColumnElement[bool]]:
    return [
        Job.run_id == run.id,
        Job.kind == kind,
        Job.created_at >= run.started_at,
        Job.state.in_(RETRIABLE_STATES),
    ]


def _is_unserved(but: Collection[UUID]) -> list[ColumnElement[bool]]:
    return [
        *is_open(RunState.RUNNING),
        Run.id.not_in(but),
        Run.next_position <= Run.last_position,
    ]


def _waiting(own_wait: str, max_waiting: int) -> Select[UUID | None]:
    """The runs that get no shard, as shards of them wait; see `next_to_serve`."""
    is_own = Job.error_code.is_not_distinct_from(own_wait)
    return (
        select(Job.run_id)
        .where(*open_shards(), _waits())
        .group_by(Job.run_id)
        .having(or_(func.bool_or(~is_own), func.count() >= max_waiting))
    )


def _waits() -> ColumnElement[bool]:
    # A shard that never failed has no time to wait for; NULL would make it neither.
    return (Job.state == JobState.QUEUED) & func.coalesce(Job.not_before > func.now(), false())
