"""Ends batches whose runs have ended: notes what they came to, and tells it.

A batch ends when no call of its run is under way any more, so that its sums change no more.
"""

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from promptstack.repositories.batch_models import Batch, BatchState
from promptstack.repositories.batches import BatchOfRun
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.session import Ledger
from promptstack.repositories.signs import RunSigns
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.runs.lifecycle import RunLifecycle

logger = logging.getLogger(__name__)

AT_ONCE = 100
OF_RUN = {
    RunState.COMPLETED: BatchState.COMPLETED,
    RunState.FAILED: BatchState.FAILED,
    RunState.CANCELLED: BatchState.CANCELLED,
    RunState.EXPIRED: BatchState.EXPIRED,
}
RUN_DELETED = ("run_deleted", "The run of the batch was deleted before it was done.")
NOT_READ = ("internal_error", "The file of the batch could not be read to its end.")


class BatchEndings:
    """Runs in every worker, also in several at once."""

    def __init__(
        self, ledger: Ledger, lifecycle: RunLifecycle, discard: Callable[[UUID], None]
    ) -> None:
        """Take what deletes a run that was never started."""
        self._ledger = ledger
        self._discard = discard
        self._lifecycle = lifecycle

    def run_once(self) -> None:
        """End what has come to its end. Raises `TransientLedgerError`."""
        with self._ledger.statement() as statement:
            signs = statement.signs.of_runs([])
        self.tend(signs)

    def tend(self, signs: RunSigns, retention: float = 0.0) -> None:
        """End batches of which there are signs, and delete what ended `retention` seconds ago.

        0 seconds: never.
        """
        if signs.unsettled_batches:
            self._settle_all()
        if signs.old_batches:
            with self._ledger.transaction() as unit:
                for batch_id in unit.batches.prune(retention):
                    unit.files.mark_outputs_deleted(batch_id)

    def wake(self) -> None:
        """Do it at once; maintenance would a second later. Never raises."""
        try:
            self.run_once()
        except TransientLedgerError as error:
            logger.warning("batches are ended later: %s", error)
        except Exception:
            logger.exception("batches could not be ended, and are later")

    def _settle_all(self) -> None:
        last: UUID | None = None
        while True:
            with self._ledger.transaction() as unit:
                found = unit.batches.to_settle(AT_ONCE, last)
            for last in found:
                self._settle(last)
            # On behind those that could not be ended: they must not hold up the others.
            if len(found) < AT_ONCE:
                return

    def _settle(self, batch_id: UUID) -> None:
        try:
            run_id = self._end(batch_id)
            if run_id is not None:
                # Whoever cancelled the batch has gone away before they ended its run.
                self._lifecycle.end(run_id, RunState.CANCELLED)
        except TransientLedgerError:
            raise  # nothing is wrong with the batch
        except Exception:
            logger.exception("batch %s could not be ended, and is tried again", batch_id)

    def _end(self, batch_id: UUID) -> UUID | None:
        """End a batch if it is over; the id of its run if that has still to be cancelled."""
        with self._ledger.transaction() as unit:
            batch = unit.batches.lock(batch_id)
            if batch is None or batch.ended_at is not None:
                return None
            run = None if batch.run_id is None else unit.runs.get(batch.run_id)
            if batch.state == BatchState.VALIDATING:
                job = unit.jobs.get(batch.job_id)
                if job is not None and job.finished_at is None:
                    return None
                _end_unread(unit, batch, run, job)
                unread = batch.run_id
            else:
                unread = None
                if run is not None and not RunState(run.state).is_final:
                    return run.id if batch.cancelling_at is not None else None
                _end_with_run(unit, BatchOfRun(batch, run))
        if unread is not None:
            self._discard(unread)
        return None


def _end_unread(unit: UnitOfWork, batch: Batch, run: Run | None, job: Job | None) -> None:
    """End a batch whose file is not read any more, though it was not read to its end."""
    if job and job.state == JobState.CANCELLED:
        _cancelled(unit, batch)
    elif (job and job.state == JobState.EXPIRED) or (run and run.state == RunState.EXPIRED):
        unit.batches.end(batch.id, BatchState.EXPIRED)
    else:
        code, message = NOT_READ
        if job is not None and job.error_code:
            code, message = job.error_code.lower(), job.error or message
        unit.batches.end(batch.id, BatchState.FAILED, errors=[_error(code, message)])


def _end_with_run(unit: UnitOfWork, found: BatchOfRun) -> None:
    """End a batch with its run, once no call is under way any more."""
    batch, run = found
    if run is None:
        unit.batches.end(batch.id, BatchState.FAILED, errors=[_error(*RUN_DELETED)])
        return
    if unit.run_maintenance.has_shards(run.id):
        return
    state = OF_RUN[RunState(run.state)]
    counted = unit.outcomes.count_outcomes(run.id)
    tokens = unit.batches.tokens_of(run)
    values: dict[str, Any] = {
        "total": run.total,
        "completed": counted.succeeded,
        "input_tokens": tokens.input,
        "cached_tokens": tokens.cached,
        "output_tokens": tokens.output,
    }
    if state is BatchState.COMPLETED and batch.finalizing_at is None:
        values["finalizing_at"] = run.finished_at
    if state is BatchState.FAILED:
        values["errors"] = [_error((run.error_code or "FAILED").lower(), run.error or "")]
    if state is BatchState.CANCELLED:
        _cancelled(unit, batch, **values)
    else:
        unit.batches.end(batch.id, state, **values)


def _cancelled(unit: UnitOfWork, batch: Batch, **values: Any) -> None:
    # Somebody may have cancelled its run, or its job.
    since = batch.cancelling_at or unit.now()
    unit.batches.end(batch.id, BatchState.CANCELLED, cancelling_at=since, **values)


def _error(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "line": None, "param": None}
