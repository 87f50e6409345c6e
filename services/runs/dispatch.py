"""Which shard is next, and when a run is done."""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from config.names import Queue
from repositories.errors import TransientLedgerError
from repositories.models import JobKind
from repositories.run_models import Run, RunKind, RunState
from repositories.runs import Change
from repositories.session import Ledger, UnitOfWork
from services.doorbell import Doorbell, Ring, ring_now
from services.runs.progress import RunProgress
from services.runs.verdicts import RUN_ENDING_CODES, TriedLater

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
PRUNED_AT_ONCE = 20_000


def shard_items(run: Run) -> int:
    """How many items of `run` are one shard."""
    kind = RunKind(run.kind)
    return min(MOST_ITEMS[kind], run.in_flight * ITEMS_A_PLACE[kind])


class Dispatch:
    """Gives out shards and ends runs. Any worker may do it, one at a time does.

    Shards are made when there is a worker for them, of the run that waits longest with the fewest:
    so the queue holds few messages of however many items, and a small run isn't behind a large one.
    """

    def __init__(
        self,
        ledger: Ledger,
        doorbell: Doorbell,
        progress: RunProgress,
        *,
        shards_a_worker: int,
        worker_lost_seconds: float,
        max_retries: int,
    ) -> None:
        self._ledger = ledger
        self._doorbell = doorbell
        self._progress = progress
        self._shards_a_worker = shards_a_worker
        self._worker_lost_seconds = worker_lost_seconds
        self._max_retries = max_retries

    def run_once(self) -> None:
        """Give out what shards there are workers for, and end what is done.

        Raises `TransientLedgerError`. A broker that is away is waited for.
        """
        with self._ledger.transaction() as unit:
            failing = unit.runs.find_failing(RUN_ENDING_CODES)
        for one in failing:
            # Only of the start that was seen: somebody may have retried the run meanwhile.
            self.end(
                one.run_id,
                RunState.FAILED,
                one.error_code,
                one.error,
                started_at=one.started_at,
            )
        self._in_turn(self._serve)
        self._in_turn(self._finalize)

    def nudge(self) -> None:
        """Do the same where what counts is done, and a worker's upkeep would do it a second later.

        Never raises for a ledger that is away.
        """
        try:
            self.run_once()
        except TransientLedgerError as error:
            logger.warning("shards are given out later: %s", error)

    def upkeep(self, retention: float) -> None:
        """Do the same, end overdue and abandoned runs, and delete those that ended long ago."""
        with self._ledger.transaction() as unit:
            overdue = [(id_, RunState.EXPIRED) for id_ in unit.runs.find_overdue()]
            left = [(id_, RunState.FAILED) for id_ in unit.runs.find_abandoned(ABANDONED_SECONDS)]
            half_ended = unit.runs.find_half_ended()
        for run_id, state in overdue:
            self.end(run_id, state, "EXPIRED", "The run's deadline passed before it was done.")
        for run_id, state in left:
            self.end(run_id, state, "NOT_ACCEPTED", "Whoever handed the run in went away midway.")
        for run in half_ended:
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
        with self._ledger.transaction() as unit:
            ended = unit.runs.finish(run_id, state, error_code, error, started_at=started_at)
        if ended is None:
            return None
        # Apart, as everywhere a job is locked before its run; `upkeep` does it where we die here.
        self._clean_up(ended)
        self._progress.publish(ended)
        return ended

    def _clean_up(self, ended: Run) -> None:
        """Cancel the queued shards of an ended run; what was embedded still gets its index.

        Those in the hands of a worker let no call begin any more, and keep what is under way: it
        is paid for.
        """
        rings: list[Ring] = []
        with self._ledger.transaction() as unit:
            for job_id in unit.runs.queued_shards(ended):
                unit.jobs.cancel(job_id)
            if ended.kind == RunKind.EMBEDDING and ended.started_at is not None:
                rings = [self._add(unit, ended, JobKind.FINALIZATION, Queue.MAINTENANCE, {})]
        ring_now(self._ledger, self._doorbell, rings)

    def _in_turn(self, step: Callable[[UnitOfWork], tuple[list[Ring], list[Run]]]) -> None:
        with self._ledger.transaction() as unit:
            if not unit.try_lock("dispatch"):
                return
            rings, changed = step(unit)
        ring_now(self._ledger, self._doorbell, rings)
        for run in changed:
            self._progress.publish(run)

    def _serve(self, unit: UnitOfWork) -> tuple[list[Ring], list[Run]]:
        workers = max(1, unit.workers.count_alive(self._worker_lost_seconds))
        places = workers * self._shards_a_worker - unit.runs.count_working_shards()
        rings: list[Ring] = []
        while places > 0:
            run = unit.runs.next_to_serve(TriedLater.code, MOST_WAITING)
            if run is None:
                break
            kind = RunKind(run.kind)
            found = unit.items.next_slice(run.id, run.next_position, shard_items(run))
            if found is None:
                unit.runs.note_served(run.id, run.last_position + 1)
                continue
            what = {"first": found.first, "last": found.last}
            rings.append(self._add(unit, run, JobKind.SHARD, QUEUES[kind], what))
            unit.runs.note_served(run.id, found.last + 1)
            places -= 1
        return rings, []

    def _finalize(self, unit: UnitOfWork) -> tuple[list[Ring], list[Run]]:
        rings: list[Ring] = []
        changed: list[Run] = []
        for run_id in unit.runs.find_done():
            run = unit.runs.lock(run_id)
            # Looked at again under the lock: it may have ended and been started anew.
            if run is None or run_id not in unit.runs.find_done():
                continue
            failed = unit.runs.failed_shards(run)
            if any(shard.error_code in RUN_ENDING_CODES for shard in failed):
                continue  # it failed just now: the next round ends the run
            for shard in failed:
                error = shard.error or f"Its shard was {shard.state}."
                code = shard.error_code or shard.state.upper()
                lost = unit.items.end_open(run_id, shard.first, shard.last, code, error)
                unit.runs.change(run_id, Change(failed=lost))
            finalizing = unit.runs.finalize(run_id)
            if finalizing is not None:
                changed.append(finalizing)
        for run_id in unit.runs.find_unfinalized():
            run = unit.runs.get(run_id)
            if run is not None:
                rings.append(self._add(unit, run, JobKind.FINALIZATION, Queue.MAINTENANCE, {}))
        return rings, changed

    def _add(
        self, unit: UnitOfWork, run: Run, kind: JobKind, queue: Queue, what: dict[str, Any]
    ) -> Ring:
        job = unit.jobs.add(
            lifetime=max(60.0, (run.expires_at - unit.now()).total_seconds()),
            kind=kind,
            queue=queue,
            provider=run.provider,
            model=run.model,
            request=what,
            request_hash=f"{run.id}:{what}",
            user_id=run.user_id,
            idempotency_key=None,
            max_retries=self._max_retries,
            run_id=run.id,
        )
        if job is None:
            raise AssertionError("a shard has no idempotency key to meet another's")
        return Ring.of(job)

    def _prune(self, retention: float) -> None:
        with self._ledger.transaction() as unit:
            run_id = unit.runs.find_old(retention)
            if run_id is not None and unit.items.delete_of(run_id, PRUNED_AT_ONCE) == 0:
                run = unit.runs.get(run_id)
                if run is not None:
                    unit.runs.delete(run)
            unit.answers.prune(retention)
