"""Which shard is next, and when a run is done."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import Job, JobKind, JobState
from promptstack.repositories.runs.items import Slice
from promptstack.repositories.runs.models import Run, RunKind, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.runs.scheduling import Shard
from promptstack.repositories.session import Ledger, UnitOfWork
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.runs.progress import RunProgress
from promptstack.services.runs.shards.errors import TriedLater, run_ending_codes

logger = logging.getLogger(__name__)

ITEMS_A_PLACE = {RunKind.GENERATION: 20, RunKind.EMBEDDING: 2_048}
MOST_ITEMS = {RunKind.GENERATION: 1_000, RunKind.EMBEDDING: 8_192}
"""Enough for many full calls, and few enough that runs take turns: one with few calls in flight
would hold its worker's place for long with as many items as one with many."""
QUEUES = {
    RunKind.GENERATION: Queue.GENERATION_BULK,
    RunKind.EMBEDDING: Queue.EMBEDDINGS_BULK,
}
MOST_WAITING = 8
"""Shards of a run that wait to try items again, before it is given no other."""
ABANDONED_SECONDS = 3_600.0
FINALIZATION_SECONDS = 86_400.0
"""How long an end may take. The run's deadline is for its items: an index may take hours."""
MOST_FINALIZATIONS = 2
"""Of one run that fail for good: one with its index, and one without."""
PRUNED_AT_ONCE = 20_000
EXPIRED = ("EXPIRED", "The run's deadline passed before it was done.")
NOT_ACCEPTED = ("NOT_ACCEPTED", "Whoever handed the run in went away midway.")


def shard_items(run: Run) -> int:
    """How many items of `run` are one shard."""
    kind = RunKind(run.kind)
    return min(MOST_ITEMS[kind], run.in_flight * ITEMS_A_PLACE[kind])


class Dispatch:
    """Gives out shards and ends runs. Any worker does it, also several at once.

    A lock lets one at a time give out shards. Whoever ends a run looks again under its lock.

    Shards are made when there is a worker for them, of the run that waits longest with the fewest:
    so the queue holds few messages of however many items, and a small run isn't behind a large one.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        progress: RunProgress,
        *,
        shards_a_worker: int,
        shard_bytes: int,
        worker_lost_seconds: float,
        max_retries: int,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._progress = progress
        self._shards_a_worker = shards_a_worker
        self._shard_bytes = shard_bytes
        self._worker_lost_seconds = worker_lost_seconds
        self._max_retries = max_retries

    def run_once(self) -> None:
        """Give out what shards there are workers for, and end what is done.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        with self._ledger.transaction() as unit:
            failing = unit.scheduling.find_failing(sorted(run_ending_codes()))
        for one in failing:
            # Only of the start that was seen: somebody may have retried the run meanwhile.
            with _apart(one.run_id):
                self.end(
                    one.run_id,
                    RunState.FAILED,
                    one.error_code,
                    one.error,
                    started_at=one.started_at,
                )
        self._serve()
        with self._ledger.transaction() as unit:
            done = unit.scheduling.find_done()
            unfinalized = unit.scheduling.find_unfinalized()
        for run_id in done:
            with _apart(run_id):
                self._finalize(run_id)
        for run_id in unfinalized:
            with _apart(run_id):
                self._complete(run_id)

    def wake(self) -> None:
        """Do the same right away, where maintenance would do it a second later.

        Never raises: whoever has just stored something must not be told otherwise.
        """
        try:
            self.run_once()
        except TransientLedgerError as error:
            logger.warning("shards are given out later: %s", error)
        except Exception:
            logger.exception("shards could not be given out, and are later")

    def maintain(self, retention: float) -> None:
        """Do the same, end overdue and abandoned runs, and delete those that ended long ago."""
        with self._ledger.transaction() as unit:
            overdue = unit.run_maintenance.find_overdue()
            left = unit.run_maintenance.find_abandoned(ABANDONED_SECONDS)
            half_ended = unit.run_maintenance.find_half_ended()
        for run_id in overdue:
            with _apart(run_id):
                self.end(run_id, RunState.EXPIRED, *EXPIRED)
        for run_id in left:
            with _apart(run_id):
                self.end(run_id, RunState.FAILED, *NOT_ACCEPTED)
        for run in half_ended:
            with _apart(run.id):
                self._clean_up(run)
        self.run_once()
        if retention:
            self._prune(retention)

    def end(
        self,
        run_id: UUID,
        state: RunState,
        error_code: str | None = None,
        error: str | None = None,
        *,
        started_at: datetime | None = None,
    ) -> Run | None:
        """End a run before all its items have; what they came to is kept. None if it had ended."""
        messages: list[JobMessage] = []
        with self._ledger.transaction() as unit:
            ended = unit.runs.finish(run_id, state, error_code, error, started_at=started_at)
            if ended is None:
                return None
            if ended.kind == RunKind.EMBEDDING and ended.started_at is not None:
                # Its start may have dropped the index: there is no end that doesn't bring it back.
                messages = [self._add_finalization(unit, ended)]
        publish_now(self._ledger, self._publisher, messages)
        # Apart, as everywhere a job is locked before its run; `maintain` does it where we die here.
        self._clean_up(ended)
        self._progress.publish(ended)
        return ended

    def publish(self, messages: Sequence[JobMessage]) -> None:
        """Send messages of what was just committed; see `publish_now`."""
        publish_now(self._ledger, self._publisher, messages)

    def _clean_up(self, ended: Run) -> None:
        """Cancel the queued shards of an ended run.

        Those in the hands of a worker let no call begin any more, and keep what is under way: it
        is paid for.
        """
        with self._ledger.transaction() as unit:
            for job_id in unit.scheduling.queued_shards(ended):
                unit.steps.cancel(job_id)

    def _serve(self) -> None:
        """Give out what shards there are workers for."""
        bad: list[UUID] = []
        while self._serve_next(bad):
            pass

    def _serve_next(self, bad: list[UUID]) -> bool:
        """Give out a shard of a run that isn't `bad`; False where there is none, or no worker."""
        messages: list[JobMessage] = []
        run_id: UUID | None = None
        try:
            with self._ledger.transaction() as unit:
                if not (unit.try_lock("dispatch") and self._has_place(unit)):
                    return False
                run = unit.scheduling.next_to_serve(TriedLater.code, MOST_WAITING, but=bad)
                if run is None:
                    return False
                run_id = run.id
                found = unit.items.next_slice(
                    run.id,
                    run.next_position,
                    shard_items(run),
                    most_bytes=self._shard_bytes,
                )
                if found is None:
                    unit.runs.note_served(run.id, run.last_position + 1)
                else:
                    messages = [self.add_shard(unit, run, found)]
                    unit.runs.note_served(run.id, found.last + 1)
        except TransientLedgerError:
            raise
        except Exception:
            if run_id is None:
                raise
            logger.exception("run %s could not be given a shard, and is tried again", run_id)
            bad.append(run_id)
            messages = []
        publish_now(self._ledger, self._publisher, messages)
        return True

    def _has_place(self, unit: UnitOfWork) -> bool:
        workers = max(1, unit.workers.count_alive(self._worker_lost_seconds))
        return unit.scheduling.count_working_shards() < workers * self._shards_a_worker

    def _finalize(self, run_id: UUID) -> None:
        """Note that a run is done, and have its index built."""
        messages: list[JobMessage] = []
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
                messages = [self._add_finalization(unit, run)]
        if cut_short is not None:
            # What is left stays open, as where the run's end comes before that of its shards.
            self.end(run_id, *cut_short, started_at=run.started_at)
            return
        publish_now(self._ledger, self._publisher, messages)
        self._progress.publish(run)

    def _complete(self, run_id: UUID) -> None:
        """Have a run completed whose finalization failed for good: without an index now.

        Where that fails, too, it is no fault of the index's, and the run ends as failed.
        """
        messages: list[JobMessage] = []
        failed: Sequence[Job] = []
        with self._ledger.transaction() as unit:
            run = unit.runs.lock(run_id)
            if run is None or not unit.scheduling.find_unfinalized(run_id):
                return
            failed = unit.scheduling.failed_finalizations(run)
            if not failed:
                messages = [self._add_finalization(unit, run)]
            elif len(failed) < MOST_FINALIZATIONS:
                why = failed[-1].error or f"Its finalization was {failed[-1].state}."
                logger.error("run %s is left without an index: %s", run_id, why)
                messages = [self._add_finalization(unit, run, without_index=why)]
        if not messages:
            last = failed[-1]
            logger.error("run %s could not be completed: %s", run_id, last.error)
            self.end(
                run_id, RunState.FAILED, last.error_code, last.error, started_at=run.started_at
            )
        publish_now(self._ledger, self._publisher, messages)

    def add_shard(self, unit: UnitOfWork, run: Run, found: Slice, deaths: int = 0) -> JobMessage:
        """Add the shard of these items; its message, for `publish` once this is committed."""
        lifetime = max(60.0, (run.expires_at - unit.now()).total_seconds())
        return self._add(
            unit,
            run,
            kind=JobKind.SHARD,
            queue=QUEUES[RunKind(run.kind)],
            request={"first": found.first, "last": found.last},
            lifetime=lifetime,
            deaths=deaths,
        )

    def _add_finalization(self, unit: UnitOfWork, run: Run, **request: str) -> JobMessage:
        return self._add(
            unit,
            run,
            kind=JobKind.FINALIZATION,
            queue=Queue.MAINTENANCE,
            request=request,
            lifetime=FINALIZATION_SECONDS,
        )

    def _add(
        self, unit: UnitOfWork, run: Run, *, request: Mapping[str, Any], **how: Any
    ) -> JobMessage:
        job = unit.jobs.add(
            **how,
            provider=run.provider,
            model=run.model,
            request=request,
            request_hash=f"{run.id}:{request}",
            user_id=run.user_id,
            idempotency_key=None,
            max_retries=self._max_retries,
            run_id=run.id,
        )
        if job is None:
            raise AssertionError("a shard has no idempotency key to meet another's")
        return JobMessage.of(job)

    def _prune(self, retention: float) -> None:
        with self._ledger.transaction() as unit:
            if not unit.try_lock("prune"):
                return
            run_id = unit.run_maintenance.next_pruned() or unit.run_maintenance.prune(retention)
            if run_id is not None and unit.items.delete_of(run_id, PRUNED_AT_ONCE) == 0:
                unit.run_maintenance.forget_pruned(run_id)
            unit.answers.prune(retention)


def _cut_short(run: Run, shards: Sequence[Shard]) -> tuple[RunState, str, str | None] | None:
    """How a run ends that has items left which no shard can do any more; None where it is done."""
    if run.succeeded + run.failed >= run.total:
        return None
    for shard in shards:
        if shard.error_code in run_ending_codes():
            # Its shard failed after that was last looked for.
            return RunState.FAILED, shard.error_code, shard.error
    is_expired = any(shard.state == JobState.EXPIRED for shard in shards)
    return (RunState.EXPIRED, *EXPIRED) if is_expired else None


@contextmanager
def _apart(run_id: UUID) -> Iterator[None]:
    """Log what is wrong with one run: it keeps no other from being tended."""
    try:
        yield
    except TransientLedgerError:
        raise  # nothing is wrong with the run
    except Exception:
        logger.exception("run %s could not be tended, and is tried again", run_id)
