"""A run's way from its start to its end; docs/architecture.md draws it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from uuid import UUID

from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.run_models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.runs.scheduling import SchedulingRepository, Shard
from promptstack.repositories.session import Ledger
from promptstack.repositories.signs import RunSigns
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import run_ending_codes
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.notifications.run_ends import RunEnds
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.scheduler import ShardScheduler

logger = logging.getLogger(__name__)

MAX_FINALIZATIONS = 2
"""Of one run that fail for good: one with its index, and one without."""
EXPIRED = ("EXPIRED", "The run's deadline passed before it was done.")


class RunLifecycle:
    """Brings runs on and ends them. Any worker does it, also several at once.

    Whoever ends a run looks again under its lock.
    """

    def __init__(
        self,
        ledger: Ledger,
        scheduler: ShardScheduler,
        progress: RunProgress,
        run_ends: RunEnds,
    ) -> None:
        self._ledger = ledger
        self._scheduler = scheduler
        self._progress = progress
        self._run_ends = run_ends

    def run_once(self) -> None:
        """Give out the shards that there are workers for, and end what is done or failing.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        with self._ledger.statement() as statement:
            signs = statement.signs.of_runs(sorted(run_ending_codes()))
        self.tend(signs)

    def tend(self, signs: RunSigns) -> None:
        """Do it for runs of which there are signs."""
        if signs.failing:
            self._end_failing()
        if signs.unserved:
            self._scheduler.give_out()
        # After its last shard was given out, a run may be done: none of its items may be left.
        if signs.done or signs.unserved:
            for run_id in self._found(lambda found: found.find_done()):
                with apart(run_id):
                    self._finalize(run_id)
        if signs.unfinalized:
            for run_id in self._found(lambda found: found.find_unfinalized()):
                with apart(run_id):
                    self._complete(run_id)

    def _found(self, find: Callable[[SchedulingRepository], Sequence[UUID]]) -> Sequence[UUID]:
        with self._ledger.transaction() as unit:
            return find(unit.scheduling)

    def _end_failing(self) -> None:
        with self._ledger.transaction() as unit:
            failing = unit.scheduling.find_failing(sorted(run_ending_codes()))
        for one in failing:
            # Only of the start that was seen: somebody may have retried the run meanwhile.
            with apart(one.run_id):
                self.end(
                    one.run_id,
                    RunState.FAILED,
                    one.error_code,
                    one.error,
                    started_at=one.started_at,
                )

    def wake(self) -> None:
        """Do the same at once; a worker's maintenance would do it a second later.

        Never raises: the caller has just stored something, and must not see an error.
        """
        try:
            self.run_once()
        except TransientLedgerError as error:
            logger.warning("shards are given out later: %s", error)
        except Exception:
            logger.exception("shards could not be given out, and are later")

    def end(
        self,
        run_id: UUID,
        state: RunState,
        error_code: str | None = None,
        error: str | None = None,
        *,
        started_at: datetime | None = None,
        record: Callable[[UnitOfWork], None] = lambda unit: None,
    ) -> Run | None:
        """End a run before its items have all ended, and keep their results. None if it had ended.

        With `started_at`, end it only if it was not started again since. `record` runs in the same
        transaction.
        """
        messages: list[JobMessage] = []
        with self._ledger.transaction() as unit:
            ended = unit.runs.finish(run_id, state, error_code, error, started_at=started_at)
            if ended is None:
                return None
            record(unit)
            self._run_ends.tell(unit, ended)
            leaves_work = ended.kind == RunKind.EMBEDDING or ended.output_url is not None
            if leaves_work and ended.started_at is not None:
                # Its start may have dropped the index, so every end brings it back.
                messages = [self._scheduler.add_finalization(unit, ended)]
        self._scheduler.publish(messages)
        # In a transaction of its own, as a job is always locked before its run. If this process
        # dies here, maintenance does it.
        self.cancel_shards(ended)
        self._progress.publish(ended)
        return ended

    def end_unserved(self, unit: UnitOfWork, started: Run, state: RunState) -> Run:
        """End a run in the transaction that starts it: none of it is given out, or to be undone."""
        ended = unit.runs.finish(started.id, state) or started
        self._run_ends.tell(unit, ended)
        return ended

    def cancel_shards(self, ended: Run) -> None:
        """Cancel the queued shards of an ended run.

        A shard that a worker has begins no more calls, and keeps those in flight: they are paid
        for.
        """
        with self._ledger.transaction() as unit:
            for job_id in unit.scheduling.queued_shards(ended):
                unit.jobs.cancel(job_id)

    def _finalize(self, run_id: UUID) -> None:
        """Note that all items of a run have ended, and have its index built."""
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            # Looked at again under the lock: it may have ended and been started anew.
            if run is None or not unit.scheduling.find_done(run_id):
                return
            shards = unit.scheduling.failed_shards(run)
            cut_short = _cut_short(run, shards)
            if cut_short is None:
                for shard in shards:
                    error = shard.error or f"Its shard was {shard.state}."
                    code = shard.error_code or shard.state.upper()
                    lost = unit.outcomes.end_open(run_id, shard.first, shard.last, code, error)
                    unit.runs.change(run_id, Change(failed=lost))
                run = unit.runs.finalize(run_id) or run
                unit.batches.note_finalizing(run_id)
                message = self._scheduler.add_finalization(unit, run)
        if cut_short is not None:
            # Items without an outcome stay open, as after any early end.
            self.end(run_id, *cut_short, started_at=run.started_at)
            return
        self._scheduler.publish([message])
        self._progress.publish(run)

    def _complete(self, run_id: UUID) -> None:
        """Finalize once more a run whose finalization failed for good: now without an index.

        If that fails too, the index is not at fault, and the run ends as failed.
        """
        messages: list[JobMessage] = []
        failed: Sequence[Job] = []
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None or not unit.scheduling.find_unfinalized(run_id):
                return
            failed = unit.scheduling.failed_finalizations(run)
            if not failed:
                messages = [self._scheduler.add_finalization(unit, run)]
            elif len(failed) < MAX_FINALIZATIONS:
                why = failed[-1].error or f"Its finalization was {failed[-1].state}."
                logger.error("run %s is left without an index: %s", run_id, why)
                messages = [self._scheduler.add_finalization(unit, run, without_index=why)]
        if not messages:
            last = failed[-1]
            logger.error("run %s could not be completed: %s", run_id, last.error)
            self.end(
                run_id, RunState.FAILED, last.error_code, last.error, started_at=run.started_at
            )
        self._scheduler.publish(messages)


def _cut_short(run: Run, shards: Sequence[Shard]) -> tuple[RunState, str, str | None] | None:
    """How a run ends if it has open items that no shard can do any more. None if it is done."""
    if run.succeeded + run.failed >= run.total:
        return None
    for shard in shards:
        if shard.error_code in run_ending_codes():
            # It failed after `find_failing` had looked.
            return RunState.FAILED, shard.error_code, shard.error
    is_expired = any(shard.state == JobState.EXPIRED for shard in shards)
    return (RunState.EXPIRED, *EXPIRED) if is_expired else None


@contextmanager
def apart(run_id: UUID) -> Iterator[None]:
    """Log an error of one run, so that the others go on."""
    try:
        yield
    except TransientLedgerError:
        raise  # nothing is wrong with the run
    except Exception:
        logger.exception("run %s could not be tended, and is tried again", run_id)
