"""Puts right what messages, brokers and workers that vanished left behind."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from config.names import Queue
from repositories.jobs import JobRef
from repositories.models import JobState
from repositories.session import Ledger, UnitOfWork
from services.doorbell import BrokerUnavailable, Doorbell, Ring
from services.progress import ProgressService
from services.runs.dispatch import Dispatch
from services.silence import blind_spans, silence_of_the_dead
from services.waiting_jobs import WaitingJobs

logger = logging.getLogger(__name__)

BATCH = 500
ROUNDS = 4
"""Batches rung in one run, whose transactions stay short."""

PATIENCE_SECONDS = 10.0
"""How long a job may stay queued after its message was sent, once its queue is empty."""

STATEMENT_SECONDS = 10.0
"""Longest wait for one statement: while it hangs, nobody else may do this work."""

FORGET_WORKERS_SECONDS = 3_600.0


@dataclass(frozen=True)
class Retention:
    """How long what is over is kept, in seconds; 0 is for ever."""

    jobs_seconds: float
    attempts_seconds: float


FOR_EVER = Retention(0.0, 0.0)


@dataclass(frozen=True)
class Proof:
    """How long a worker must have been silent at a moment to count as dead, in seconds."""

    silence: float
    at: float
    """By the ledger's clock."""


class Reconciler:
    """A round of it runs in every worker, each second.

    Of the steps that two could do twice or that are long, a lock lets one at a time do each; the
    others change only what is still as they found it.
    """

    def __init__(
        self,
        ledger: Ledger,
        doorbell: Doorbell,
        progress: ProgressService,
        waiting: WaitingJobs,
        dispatch: Dispatch,
        *,
        worker_lost_seconds: float,
        retention: Retention = FOR_EVER,
        clock: Callable[[UnitOfWork], datetime] = UnitOfWork.now,
    ) -> None:
        self._ledger = ledger
        self._doorbell = doorbell
        self._progress = progress
        self._waiting = waiting
        self._dispatch = dispatch
        self._worker_lost_seconds = worker_lost_seconds
        self._retention = retention
        self._clock = clock

    def run_once(self) -> int:
        """Free lost jobs, end overdue ones, prune old ones, ring what is due; how many were rung.

        Raises `LedgerUnavailable`. A broker that is away is waited for.
        """
        proof = self._watch()
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("reconciler"):
                return 0
            freed = [] if proof is None else unit.upkeep.free_lost(self._silence(proof, unit))
            ended = [*unit.upkeep.expire_overdue(), *(job for job in freed if not _waits(job))]
            unit.upkeep.lose_calls(unit.workers.forget_dead(FORGET_WORKERS_SECONDS))
            unit.reservations.forget_idle()
        for job in freed:
            logger.warning("job %s was freed: its worker died", job.id)
        self._progress.rebuild([job.id for job in {*freed, *ended}])
        self._prune()
        self._waiting.call_back()
        rung = self._ring(ended)
        # Last: whatever is wrong with a run must not keep jobs from being rung.
        self._dispatch.upkeep(self._retention.jobs_seconds)
        return rung

    def _ring(self, ended: Sequence[JobRef]) -> int:
        try:
            # For a job that has ended, its message only makes AsyncResult and Flower say so.
            for job in ended:
                self._doorbell.ring(Ring.of(job))
            return self._ring_due()
        except BrokerUnavailable as error:
            logger.warning("jobs that are due wait for the broker: %s", error)
            return 0

    def _prune(self) -> None:
        with self._ledger.transaction() as unit:
            if not unit.try_lock("prune"):
                return
            if self._retention.jobs_seconds:
                unit.upkeep.prune_jobs(self._retention.jobs_seconds)
            if self._retention.attempts_seconds:
                unit.upkeep.prune_attempts(self._retention.attempts_seconds)

    def _silence(self, proof: Proof, unit: UnitOfWork) -> float:
        """The silence that proves a death now: the ledger may have hung since it was watched."""
        return proof.silence + max(0.0, self._clock(unit).timestamp() - proof.at)

    def _watch(self) -> Proof | None:
        """Note that the ledger is there; the silence that proves a worker's death, if any does.

        Apart from the rest, and by all workers: one that freezes with the lock of the rest must
        not look like an outage of the ledger.
        """
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("watch"):
                return None
            now = self._clock(unit).timestamp()
            last_round, blind = unit.upkeep.last_watch()
            blind = blind_spans(blind, last_round, now, self._worker_lost_seconds / 2)
            unit.upkeep.note_watch(now, blind)
            silence = silence_of_the_dead(blind, now, self._worker_lost_seconds)
            return None if silence is None else Proof(silence, now)

    def _ring_due(self) -> int:
        epoch, uptime = self._doorbell.epoch(), self._doorbell.uptime()
        rung = 0
        for _ in range(ROUNDS):
            batch = self._ring_batch(epoch, uptime)
            rung += batch
            if batch < BATCH:
                break
        return rung

    def _ring_batch(self, epoch: str, uptime: float | None) -> int:
        idle = [queue for queue in Queue if self._doorbell.waiting(queue) == 0]
        # Marked first: when two reconcilers meet, each job is rung by one of them, and if this
        # process dies before it has rung, the messages that are taken later tell.
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock("reconciler"):
                return 0
            jobs = unit.rings.take_unrung(
                epoch,
                idle_queues=idle,
                patience=PATIENCE_SECONDS,
                limit=BATCH,
                uptime=uptime,
            )
        for position, job in enumerate(jobs):
            try:
                self._doorbell.ring(Ring.of(job))
            except BrokerUnavailable:
                with self._ledger.transaction() as unit:
                    unit.rings.mark_unrung([left.id for left in jobs[position:]])
                raise
        return len(jobs)


def _waits(job: JobRef) -> bool:
    return job.state == JobState.QUEUED
