"""Runs: their states and sums. All changes of a run's row are here."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Executable,
    bindparam,
    distinct,
    func,
    select,
    update,
)

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.content.unused import shared_lock
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.run_models import Run, RunKind, RunState

POPULATED: Mapping[str, Any] = {"synchronize_session": False, "populate_existing": True}
"""The session takes the row as the statement returns it, even if it has read it before."""
OPEN_STATES = (RunState.PREPARING, RunState.RUNNING, RunState.FINALIZING)


@dataclass(frozen=True)
class Change:
    """What to add to the sums of a run."""

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


@dataclass(frozen=True, kw_only=True)
class RunFilter:
    """Which runs of a list; None leaves a field open."""

    user_id: UUID | None = None
    state: RunState | None = None
    kind: RunKind | None = None
    tag: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class RunRepository(BaseRepository[Run]):
    """The states and sums of runs."""

    model = Run

    def add(self, *, lifetime: float, **values: Any) -> Run:
        """Add a run that is being read and expires in `lifetime` seconds."""
        return self.create(expires_at=func.now() + timedelta(seconds=lifetime), **values)

    def find(self, asked: PageQuery, wanted: RunFilter) -> Page[Run]:
        """Return a page of runs, newest first."""
        conditions: list[ColumnElement[bool]] = []
        if wanted.user_id is not None:
            conditions.append(Run.user_id == wanted.user_id)
        if wanted.state is not None:
            conditions.append(Run.state == wanted.state)
        if wanted.kind is not None:
            conditions.append(Run.kind == wanted.kind)
        if wanted.tag is not None:
            conditions.append(Run.tags.contains([wanted.tag]))
        if wanted.since is not None:
            conditions.append(Run.created_at >= wanted.since)
        if wanted.until is not None:
            conditions.append(Run.created_at < wanted.until)
        return self.get_page(asked, *conditions)

    def lock(self, run_id: UUID) -> Run | None:
        """Return the run, locked until the transaction ends."""
        query = select(Run).where(Run.id == run_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()

    def change(self, run_id: UUID, change: Change) -> Run | None:
        """Add to the sums of a run. Returns the changed run."""
        added = {name: value for name, value in vars(change).items() if value}
        values = {f"add_{name}": value for name, value in added.items()}
        run: Run | None = self._session.scalars(
            _change(tuple(added)),
            {"the_run": run_id, **values},
            execution_options=POPULATED,
        ).one_or_none()
        return run

    def touch(self, run_id: UUID, total: int, last_position: int) -> bool:
        """Note how much of a run has been read. False if the run is prepared no more."""
        touched = self._set(
            run_id,
            Run.state == RunState.PREPARING,
            total=total,
            last_position=last_position,
            touched_at=func.now(),
        )
        return touched is not None

    def show_reading(self, run_id: UUID) -> None:
        """Note that a run's source is still read, even if nothing came."""
        self._set(run_id, Run.state == RunState.PREPARING, touched_at=func.now())

    def start(self, run_id: UUID, *, lifetime: float | None = None, **values: Any) -> Run | None:
        """Start a run at its first open item."""
        # Vectors that are found for its items from now on stay.
        self._session.execute(select(shared_lock()))
        if lifetime is not None:
            values["expires_at"] = func.now() + timedelta(seconds=lifetime)
        return self._set(
            run_id,
            state=RunState.RUNNING,
            # Later than every shard that was added while this waited for the run's lock.
            started_at=func.clock_timestamp(),
            finished_at=None,
            output_written_at=None,
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
        """End a run. None if it had ended, or was started again since `started_at`.

        A run whose items are all done doesn't expire any more.
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
            # Later than every shard that was added while this waited for the run's lock.
            finished_at=func.clock_timestamp(),
        )

    def finalize(self, run_id: UUID) -> Run | None:
        """Note that every item of a run has ended."""
        return self._set(run_id, Run.state == RunState.RUNNING, state=RunState.FINALIZING)

    def note_output(self, run_id: UUID) -> None:
        """Note that the output of a run is written."""
        self._set(run_id, output_written_at=func.clock_timestamp())

    def note_served(self, run_id: UUID, next_position: int) -> None:
        """Note that items before `next_position` belong to shards."""
        self._set(run_id, next_position=next_position, served_at=func.clock_timestamp())

    def is_on(self, run: Run) -> bool:
        """Whether the run is still running, and was not started again since it was read."""
        same = {"the_run": run.id, "the_start": run.started_at}
        return self._session.execute(_IS_ON, same).one_or_none() is not None

    def count_workers(self, run_id: UUID) -> int:
        """Return how many workers have a shard of the run."""
        query = select(func.count(distinct(Job.worker_id))).where(
            *open_shards(), Job.run_id == run_id, Job.state == JobState.RUNNING
        )
        return self._session.scalar(query) or 0

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
    """Cached for each set of sums: building a statement costs more than running it."""
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


def is_open(state: RunState) -> list[ColumnElement[bool]]:
    """Conditions of a run in an open state. The index of open runs needs the first one."""
    return [Run.finished_at.is_(None), Run.state == state]


def open_shards() -> list[ColumnElement[bool]]:
    """Conditions of a shard that is queued or running."""
    return [Job.run_id.is_not(None), Job.finished_at.is_(None), Job.kind == JobKind.SHARD]
