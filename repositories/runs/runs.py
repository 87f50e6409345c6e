"""Runs: their sums, and which of them gets the next shard."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Executable,
    and_,
    bindparam,
    delete,
    distinct,
    exists,
    false,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import insert

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.jobs.steps import RETRIABLE_STATES
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.runs.models import PrunedRun, Run, RunState

POPULATED: Mapping[str, Any] = {"synchronize_session": False, "populate_existing": True}
"""The row as the statement returns it is what counts, not what the session has seen before."""
UNSEEN: Mapping[str, Any] = {"synchronize_session": False}
OPEN_STATES = (RunState.PREPARING, RunState.RUNNING, RunState.FINALIZING)


@dataclass(frozen=True)
class Change:
    """What is added to the sums of a run."""

    succeeded: int = 0
    failed: int = 0
    reused: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)
    unknown_cost: int = 0
    reserved_usd: Decimal = Decimal(0)
    limiter_wait_seconds: float = 0.0


@dataclass(frozen=True)
class Shard:
    """A slice of a run that has ended, and not well."""

    first: int
    last: int
    state: str
    error_code: str | None
    error: str | None


@dataclass(frozen=True)
class Failing:
    """A run with a shard that failed of what no other can escape."""

    run_id: UUID
    started_at: datetime
    error_code: str
    error: str


class RunRepository(BaseRepository[Run]):
    """The states and sums of runs."""

    model = Run

    def add(self, *, lifetime: float, **values: Any) -> Run:
        """Add a run that is being read and expires in `lifetime` seconds."""
        return self.create(expires_at=func.now() + timedelta(seconds=lifetime), **values)

    def lock(self, run_id: UUID) -> Run | None:
        """Return the run, and keep others from changing it until the transaction ends."""
        query = select(Run).where(Run.id == run_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()

    def change(self, run_id: UUID, change: Change) -> Run | None:
        """Add to the sums of a run; the run as it is then."""
        added = {name: value for name, value in vars(change).items() if value}
        values = {f"add_{name}": value for name, value in added.items()}
        run: Run | None = self._session.scalars(
            _change(tuple(added)),
            {"the_run": run_id, **values},
            execution_options=POPULATED,
        ).one_or_none()
        return run

    def touch(self, run_id: UUID, total: int, last_position: int) -> None:
        """Note how much of a run has been read. Raises nothing where it was given up meanwhile."""
        self._set(
            run_id,
            Run.state == RunState.PREPARING,
            total=total,
            last_position=last_position,
            touched_at=func.now(),
        )

    def show_reading(self, run_id: UUID) -> None:
        """Note that a run's source is still read, though nothing came."""
        self._set(run_id, Run.state == RunState.PREPARING, touched_at=func.now())

    def start(self, run_id: UUID, *, lifetime: float | None = None, **values: Any) -> Run | None:
        """Let a run's open items be worked on, from the first on."""
        if lifetime is not None:
            values["expires_at"] = func.now() + timedelta(seconds=lifetime)
        return self._set(
            run_id,
            state=RunState.RUNNING,
            # After every shard that was made while this waited for the run's lock.
            started_at=func.clock_timestamp(),
            finished_at=None,
            next_position=0,
            error_code=None,
            error=None,
            **values,
        )

    def finish(
        self,
        run_id: UUID,
        state: RunState,
        error_code: str | None = None,
        error: str | None = None,
        *,
        started_at: datetime | None = None,
    ) -> Run | None:
        """End a run; None where it had ended already, or was started anew since `started_at`.

        One all of whose items are done doesn't expire any more.
        """
        same = [] if started_at is None else [Run.started_at == started_at]
        if state == RunState.EXPIRED:
            same.append(Run.state != RunState.FINALIZING)
        return self._set(
            run_id,
            Run.state.in_(OPEN_STATES),
            *same,
            state=state,
            error_code=error_code,
            error=error,
            # After every shard that was made while this waited for the run's lock.
            finished_at=func.clock_timestamp(),
        )

    def finalize(self, run_id: UUID) -> Run | None:
        """Note that every item of a run has ended."""
        return self._set(run_id, Run.state == RunState.RUNNING, state=RunState.FINALIZING)

    def count_working_shards(self) -> int:
        """How many shards are queued or running, without those that wait for a time to come."""
        query = select(func.count()).where(*_open_shards(), ~_waits())
        return self._session.scalar(query) or 0

    def next_to_serve(
        self, own_wait: str, most_waiting: int, but: Collection[UUID] = ()
    ) -> Run | None:
        """The run that gets the next shard: the one with the fewest, and waiting longest.

        None of which a shard waits, as for its rate limit: it can't use another one. Up to
        `most_waiting` may wait with the error code `own_wait`, that of a cause of their own.
        """
        of_run = [*_open_shards(), Job.run_id == Run.id]
        shards = select(func.count()).where(*of_run).correlate(Run).scalar_subquery()
        is_own = Job.error_code.is_not_distinct_from(own_wait)
        own = select(func.count()).where(*of_run, _waits(), is_own).correlate(Run)
        return self._session.scalars(
            select(Run)
            .where(
                *_open(RunState.RUNNING),
                Run.id.not_in(but),
                Run.next_position <= Run.last_position,
                ~exists().where(*of_run, _waits(), ~is_own),
                own.scalar_subquery() < most_waiting,
            )
            .order_by(shards, Run.served_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        ).one_or_none()

    def note_served(self, run_id: UUID, next_position: int) -> None:
        """Note that items before `next_position` belong to shards."""
        self._set(run_id, next_position=next_position, served_at=func.clock_timestamp())

    def find_done(self) -> Sequence[UUID]:
        """Running runs all of whose items belong to shards which have ended."""
        return self._session.scalars(select(Run.id).where(*_done())).all()

    def is_done(self, run_id: UUID) -> bool:
        """Whether a run is one of these."""
        return self._session.scalar(select(Run.id).where(Run.id == run_id, *_done())) is not None

    def find_unfinalized(self) -> Sequence[UUID]:
        """Runs whose end nobody works on."""
        return self._session.scalars(select(Run.id).where(*_unfinalized())).all()

    def is_unfinalized(self, run_id: UUID) -> bool:
        """Whether a run is one of these."""
        query = select(Run.id).where(Run.id == run_id, *_unfinalized())
        return self._session.scalar(query) is not None

    def failed_finalizations(self, run: Run) -> Sequence[Job]:
        """The jobs that should have completed a run since its last start, and could not."""
        query = select(Job).where(*_failed(run, JobKind.FINALIZATION)).order_by(Job.id)
        return self._session.scalars(query).all()

    def failed_shards(self, run: Run) -> list[Shard]:
        """The shards of a run's last start that ended otherwise than well."""
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
        """Running runs with a shard that failed of something that no other can escape."""
        rows = self._session.execute(
            select(Run.id, Run.started_at, Job.error_code, Job.error)
            .join(Job, Job.run_id == Run.id)
            .where(
                *_open(RunState.RUNNING),
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

    def is_on(self, run: Run) -> bool:
        """Whether a run goes on in the start that was read."""
        same = {"the_run": run.id, "the_start": run.started_at}
        return self._session.execute(_IS_ON, same).one_or_none() is not None

    def queued_shards(self, run: Run) -> Sequence[UUID]:
        """The jobs of an ended run that nobody works on; not those of a later start."""
        query = select(Job.id).where(
            *_open_shards(),
            Job.run_id == run.id,
            Job.state == JobState.QUEUED,
            Job.created_at <= run.finished_at,
        )
        return self._session.scalars(query).all()

    def count_workers(self, run_id: UUID) -> int:
        """How many workers are at it now."""
        query = select(func.count(distinct(Job.worker_id))).where(
            *_open_shards(), Job.run_id == run_id, Job.state == JobState.RUNNING
        )
        return self._session.scalar(query) or 0

    def find_half_ended(self) -> Sequence[Run]:
        """Ended runs that still have queued shards from before their end."""
        # From the shards, which are few, to the runs.
        query = (
            select(Run)
            .join(Job, Job.run_id == Run.id)
            .where(*_open_shards(), Job.state == JobState.QUEUED, Job.created_at <= Run.finished_at)
        )
        return self._session.scalars(query).unique().all()

    def find_overdue(self) -> Sequence[UUID]:
        """Runs whose deadline has passed before all of their items were done."""
        is_undone = Run.succeeded + Run.failed < Run.total
        return self._session.scalars(
            select(Run.id).where(
                Run.finished_at.is_(None),
                or_(
                    Run.state == RunState.PREPARING, and_(Run.state == RunState.RUNNING, is_undone)
                ),
                Run.expires_at <= func.now(),
            )
        ).all()

    def find_abandoned(self, silence: float) -> Sequence[UUID]:
        """Runs whose reader has shown nothing of itself for `silence` seconds."""
        return self._session.scalars(
            select(Run.id).where(
                *_open(RunState.PREPARING),
                Run.touched_at < func.now() - timedelta(seconds=silence),
            )
        ).all()

    def loads_vectors(self, provider: str, model: str, *, but: UUID) -> bool:
        """Whether another run adds vectors of a model."""
        query = select(
            exists().where(
                Run.provider == provider,
                Run.model == model,
                *_open(RunState.RUNNING),
                Run.id != but,
            )
        )
        return bool(self._session.scalar(query))

    def prune(self, retention: float) -> UUID | None:
        """Delete a run that ended `retention` seconds ago or before, and nobody has in hand.

        At once and whole, as far as anybody can see; its items are deleted by and by.
        """
        run_id: UUID | None = self._session.scalar(
            select(Run.id)
            .where(Run.finished_at < func.now() - timedelta(seconds=retention))
            .order_by(Run.finished_at)
            .limit(1)
            # Somebody may just be about to retry it.
            .with_for_update(skip_locked=True)
        )
        if run_id is not None:
            self._session.execute(insert(PrunedRun).values(run_id=run_id))
            self._session.execute(delete(Run).where(Run.id == run_id), execution_options=UNSEEN)
        return run_id

    def next_pruned(self) -> UUID | None:
        """A run that was deleted, and whose items still have to be."""
        return self._session.scalar(select(PrunedRun.run_id).limit(1))

    def forget_pruned(self, run_id: UUID) -> None:
        """Note that the items of a run are deleted, too."""
        is_it = PrunedRun.run_id == run_id
        self._session.execute(delete(PrunedRun).where(is_it), execution_options=UNSEEN)

    def _set(self, run_id: UUID, *conditions: ColumnElement[bool], **values: Any) -> Run | None:
        return self._session.scalars(
            update(Run)
            .where(Run.id == run_id, *conditions)
            .values(version=Run.version + 1, **values)
            .returning(Run)
            .execution_options(**POPULATED)
        ).one_or_none()


_IS_ON = select(Run.id).where(
    Run.id == bindparam("the_run"),
    Run.state == RunState.RUNNING,
    Run.started_at == bindparam("the_start"),
)


@cache
def _change(names: tuple[str, ...]) -> Executable:
    """Built once for each set of sums: to build a statement costs more than to run it."""
    added = {
        name: getattr(Run, name) + bindparam(f"add_{name}", type_=getattr(Run, name).type)
        for name in names
    }
    return (
        update(Run)
        .where(Run.id == bindparam("the_run"))
        .values(version=Run.version + 1, **added)
        .returning(Run)
    )


def _open(state: RunState) -> list[ColumnElement[bool]]:
    """What is open has not ended, which the index of open runs is found by."""
    return [Run.finished_at.is_(None), Run.state == state]


def _done() -> list[ColumnElement[bool]]:
    return [
        *_open(RunState.RUNNING),
        Run.next_position > Run.last_position,
        ~exists().where(*_open_shards(), Job.run_id == Run.id),
    ]


def _unfinalized() -> list[ColumnElement[bool]]:
    is_worked_on = exists().where(
        Job.run_id == Run.id, Job.kind == JobKind.FINALIZATION, Job.finished_at.is_(None)
    )
    return [*_open(RunState.FINALIZING), ~is_worked_on]


def _failed(run: Run, kind: JobKind) -> list[ColumnElement[bool]]:
    return [
        Job.run_id == run.id,
        Job.kind == kind,
        Job.created_at >= run.started_at,
        Job.state.in_(RETRIABLE_STATES),
    ]


def _open_shards() -> list[ColumnElement[bool]]:
    return [Job.run_id.is_not(None), Job.finished_at.is_(None), Job.kind == JobKind.SHARD]


def _waits() -> ColumnElement[bool]:
    # What never failed has no time to wait for; NULL would make it neither wait nor not wait.
    return (Job.state == JobState.QUEUED) & func.coalesce(Job.not_before > func.now(), false())
