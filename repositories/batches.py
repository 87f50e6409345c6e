"""Batches: each with the run that does it, and how it ends."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, delete, exists, func, or_, select, text, update

from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.batch_models import Batch, BatchDoor, BatchState
from promptstack.repositories.file_models import File
from promptstack.repositories.models import Attempt, Job
from promptstack.repositories.pages import Page, PageQuery, read_page
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.runs.runs import open_shards

_LOCK = text("SELECT pg_advisory_xact_lock(hashtextextended('batches:' || :file, 0))")
_TELL = text("SELECT webhook_add_event(gen_random_uuid(), :user, :type, :batch, NULL)")
UNSYNCHRONIZED: Mapping[str, Any] = {"synchronize_session": False}
NOT_DONE = (BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)
STOPPED = (RunState.FAILED, RunState.EXPIRED, RunState.CANCELLED)


class BatchOfRun(NamedTuple):
    """A batch and its run; None where it has none yet, or none any more."""

    batch: Batch
    run: Run | None


class Tokens(NamedTuple):
    """What the calls of a run took."""

    input: int
    cached: int
    """Part of the input."""
    output: int


class BatchRepository(BaseRepository[Batch]):
    """Batches of all users."""

    model = Batch

    def add(self, *, lifetime: float, **values: Any) -> Batch:
        """Add a batch that expires in `lifetime` seconds."""
        return self.create(
            window_seconds=lifetime, expires_at=func.now() + timedelta(seconds=lifetime), **values
        )

    def find(self, batch_id: UUID) -> BatchOfRun | None:
        """A batch with its run."""
        row = self._session.execute(_with_run().where(Batch.id == batch_id)).one_or_none()
        return None if row is None else BatchOfRun(*row)

    def lock(self, batch_id: UUID) -> Batch | None:
        """A batch, locked until the transaction ends."""
        query = select(Batch).where(Batch.id == batch_id).with_for_update()
        return self._session.scalars(query.execution_options(populate_existing=True)).one_or_none()

    def repeated(self, values: Mapping[str, Any], within: float) -> Batch | None:
        """The batch that was made of the same just now, unless it came or comes to nothing.

        Of two transactions at once that ask for the same file, the second one waits for the first.
        """
        self._session.execute(_LOCK, {"file": str(values["input_file_id"])})
        same = [getattr(Batch, name).is_not_distinct_from(one) for name, one in values.items()]
        recent = Batch.created_at > func.now() - timedelta(seconds=within)
        is_stopped = exists().where(Run.id == Batch.run_id, Run.state.in_(STOPPED))
        goes_on = Batch.state.not_in(NOT_DONE), Batch.cancelling_at.is_(None), ~is_stopped
        query = select(Batch).where(*same, recent, *goes_on)
        return self._session.scalars(query.order_by(Batch.id.desc()).limit(1)).one_or_none()

    def page_of(self, user_id: UUID | None, door: BatchDoor, asked: PageQuery) -> Page[BatchOfRun]:
        """A page of a user's batches, newest first."""
        query = _with_run().where(Batch.user_id.is_not_distinct_from(user_id), Batch.door == door)
        page: Page[Any] = read_page(self._session, query.add_columns(Batch.id), Batch.id, asked)
        return page.of(lambda row: BatchOfRun(row[0], row[1]))

    def change(self, batch_id: UUID, **values: Any) -> Batch | None:
        """Change an open batch; None where it has ended."""
        changed = update(Batch).where(Batch.id == batch_id, Batch.ended_at.is_(None))
        return self._session.scalars(
            changed.values(**values).returning(Batch),
            execution_options={"synchronize_session": False, "populate_existing": True},
        ).one_or_none()

    def note_finalizing(self, run_id: UUID) -> None:
        """Note that every item of a run has ended, if it is a batch's."""
        noted = update(Batch).where(Batch.run_id == run_id, Batch.ended_at.is_(None))
        change_rows(self._session, noted.values(finalizing_at=func.clock_timestamp()))

    def end(self, batch_id: UUID, state: BatchState, **values: Any) -> Batch | None:
        """End a batch and tell it to its user's webhooks; None where it had ended."""
        ended = self.change(batch_id, state=state, ended_at=func.clock_timestamp(), **values)
        if ended is not None:
            if ended.outputs_kept_seconds is not None:
                seconds = timedelta(seconds=ended.outputs_kept_seconds)
                self._set_outputs_end(batch_id, func.now() + seconds)
            told = {"user": ended.user_id, "type": f"batch.{state}", "batch": batch_id}
            self._session.execute(_TELL, told)
        return ended

    def reopen(self, run_id: UUID) -> float | None:
        """Let the batch of a run that starts again go on; how many seconds it has for that.

        None where it is no batch's.
        """
        again = self._session.execute(
            update(Batch)
            .where(Batch.run_id == run_id)
            .values(**REOPENED, state=BatchState.IN_PROGRESS, in_progress_at=func.clock_timestamp())
            .returning(Batch.id, Batch.window_seconds),
            execution_options=UNSYNCHRONIZED,
        ).one_or_none()
        if again is None:
            return None
        self._set_outputs_end(again.id, None)
        return float(again.window_seconds)

    def _set_outputs_end(self, batch_id: UUID, at: ColumnElement[datetime] | None) -> None:
        """Note when the outputs expire; while a batch goes on, they never do."""
        changed = update(File).where(File.batch_id == batch_id).values(expires_at=at)
        change_rows(self._session, changed)

    def validate_again(self, batch_id: UUID, job_id: UUID) -> None:
        """Let another job take the file of an ended batch in."""
        again = update(Batch).where(Batch.id == batch_id)
        values = {**REOPENED, "state": BatchState.VALIDATING, "job_id": job_id}
        change_rows(self._session, again.values(**values))

    def reads(self, file_id: UUID) -> bool:
        """Whether a file is the input of any batch."""
        query = select(Batch.id).where(Batch.input_file_id == file_id).limit(1)
        return self._session.scalar(query) is not None

    def is_unsettled(self, run_id: UUID) -> bool:
        """Whether the sums of a run are still to be noted in its batch."""
        query = select(Batch.id).where(Batch.run_id == run_id, Batch.ended_at.is_(None))
        return self._session.scalar(query) is not None

    def to_settle(self, limit: int, after: UUID | None = None) -> Sequence[UUID]:
        """Open batches whose run or job is over, or is still to be cancelled, by their ids.

        A run is over when none of its calls is under way any more.
        """
        # Of its own: the batch's job is another one.
        shards = select(Job.id).where(*open_shards(), Job.run_id == Run.id).correlate(Run)
        is_over = and_(Run.finished_at.is_not(None), ~shards.exists())
        is_to_cancel = and_(Run.finished_at.is_(None), Batch.cancelling_at.is_not(None))
        return self._session.scalars(
            select(Batch.id)
            .outerjoin(Run, Run.id == Batch.run_id)
            .outerjoin(Job, Job.id == Batch.job_id)
            .where(
                Batch.ended_at.is_(None),
                *([] if after is None else [Batch.id > after]),
                case(
                    (
                        Batch.state == BatchState.VALIDATING,
                        or_(Job.id.is_(None), Job.finished_at.is_not(None)),
                    ),
                    else_=or_(Run.id.is_(None), is_over, is_to_cancel),
                ),
            )
            .order_by(Batch.id)
            .limit(limit)
        ).all()

    def tokens_of(self, run: Run) -> Tokens:
        """What the calls of a run took."""
        cached = self._session.scalar(
            select(func.coalesce(func.sum(Attempt.cached_tokens), 0))
            .join(Job, Job.id == Attempt.job_id)
            .where(Job.run_id == run.id, Job.run_id.is_not(None))
        )
        return Tokens(run.input_tokens, int(cached or 0), run.output_tokens)

    def prune(self, retention: float, limit: int = 500) -> Sequence[UUID]:
        """Delete up to `limit` batches that ended at least `retention` seconds ago."""
        old = (
            select(Batch.id)
            .where(Batch.ended_at < func.now() - timedelta(seconds=retention))
            .order_by(Batch.ended_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        gone = delete(Batch).where(Batch.id.in_(old)).returning(Batch.id)
        return self._session.scalars(gone, execution_options=UNSYNCHRONIZED).all()


REOPENED: Mapping[str, Any] = {
    "errors": [],
    "finalizing_at": None,
    "cancelling_at": None,
    "ended_at": None,
    "expires_at": func.now() + func.make_interval(0, 0, 0, 0, 0, 0, Batch.window_seconds),
}


def _with_run() -> Any:
    has_run: ColumnElement[bool] = Run.id == Batch.run_id
    return select(Batch, Run).outerjoin(Run, has_run)
