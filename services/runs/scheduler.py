"""The shard scheduler: which run gets the next shard, and which items it has."""

import logging
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.config.setting_types import TierWeights
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import JobKind
from promptstack.repositories.run_models import Run, RunKind
from promptstack.repositories.runs.items import Slice
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import TriedLater
from promptstack.services.jobs.publishing import JobMessage, Publisher, publish_now
from promptstack.services.sharing.turns import NOBODY, Turns

logger = logging.getLogger(__name__)

ITEMS_A_SLOT = {RunKind.GENERATION: 20, RunKind.EMBEDDING: 2_048}
MAX_ITEMS = {RunKind.GENERATION: 1_000, RunKind.EMBEDDING: 8_192}
"""Enough for many full calls, and few enough that runs take turns. With as many items, a run with
few calls in flight would hold a worker much longer than one with many."""
QUEUES = {
    RunKind.GENERATION: Queue.GENERATION_BULK,
    RunKind.EMBEDDING: Queue.EMBEDDINGS_BULK,
}
MAX_WAITING = 8
"""Shards of a run that wait to try items again. A run with so many gets no other shard."""
FINALIZATION_SECONDS = 86_400.0
"""How long an end may take. The run's deadline is for its items: an index may take hours."""
SHARDS = "shards"
"""What users take turns at."""


def below_share(
    waiting: Mapping[UUID, float],
    held: Mapping[UUID, int],
    weights: Mapping[UUID, float],
    slots: int,
) -> dict[UUID, float]:
    """Those of the waiting users who hold fewer slots than their share, with their weights.

    Turns alone would let a user whose shards take long fill one slot after the other. `weights` are
    those of all who wait or hold slots.
    """
    each = slots / sum(weights.values())
    return {
        user: weight
        for user, weight in waiting.items()
        if held.get(user, 0) < ceil(each * weight - 1e-9)
    }


def shard_items(run: Run) -> int:
    """How many items of `run` are one shard."""
    kind = RunKind(run.kind)
    return min(MAX_ITEMS[kind], run.in_flight * ITEMS_A_SLOT[kind])


class ShardScheduler:
    """Adds shards. Any worker does it, and a lock lets one at a time.

    A shard is added when there is a worker for it. Users get them in turns, by the weight of their
    tier. Of a user's runs the one with the fewest shards that waits longest is next, but one whose
    deadline is much nearer goes first. So the queue holds few messages of however many items, and
    a small run isn't behind a large one, nor behind another user's many.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        *,
        shards_a_worker: int,
        shard_bytes: int,
        worker_lost_seconds: float,
        max_retries: int,
        weights: TierWeights,
    ) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._shards_a_worker = shards_a_worker
        self._shard_bytes = shard_bytes
        self._worker_lost_seconds = worker_lost_seconds
        self._max_retries = max_retries
        self._weights = weights

    def give_out(self) -> None:
        """Add the shards that there are workers for. Raises `TransientLedgerError`."""
        broken: list[UUID] = []
        while self._give_one(broken):
            pass

    def _give_one(self, broken: list[UUID]) -> bool:
        """Add a shard of a run that isn't `broken`. False where there is no run, or no worker."""
        messages: list[JobMessage] = []
        run_id: UUID | None = None
        try:
            with self._ledger.transaction() as unit:
                if not unit.try_lock("dispatch"):
                    return False
                turns = Turns(*unit.turns.read(SHARDS))
                run = self._next_run(unit, turns, broken)
                if run is None:
                    return False
                run_id = run.id
                found = unit.items.next_slice(
                    run.id, run.next_position, shard_items(run), max_bytes=self._shard_bytes
                )
                if found is not None:
                    messages = [self.add_shard(unit, run, found)]
                    cost = found.items / ITEMS_A_SLOT[RunKind(run.kind)]
                    turns.charge(run.user_id or NOBODY, cost)
                unit.runs.note_served(run.id, (found.last if found else run.last_position) + 1)
                unit.turns.write(SHARDS, turns.last, turns.credits)
        except TransientLedgerError:
            raise
        except Exception:
            if run_id is None:
                raise
            logger.exception("run %s could not be given a shard, and is tried again", run_id)
            broken.append(run_id)
            messages = []
        self.publish(messages)
        return True

    def _next_run(self, unit: UnitOfWork, turns: Turns, broken: Sequence[UUID]) -> Run | None:
        """The run that gets the next shard; None where none waits for one, or for no worker."""
        workers = max(1, unit.workers.count_alive(self._worker_lost_seconds))
        slots = workers * self._shards_a_worker
        working = {user or NOBODY: has for user, has in unit.scheduling.working_shards().items()}
        if sum(has.shards for has in working.values()) >= slots:
            return None
        found = unit.scheduling.users_to_serve(TriedLater.code, MAX_WAITING, broken)
        waiting = {user or NOBODY: self._weights.of(tier) for user, tier in found.items()}
        turns.keep(waiting)
        weights = {user: self._weights.of(has.tier) for user, has in working.items()} | waiting
        held = {user: has.shards for user, has in working.items()}
        while waiting:
            user = turns.next(below_share(waiting, held, weights, slots) or waiting)
            user_id = None if user == NOBODY else user
            run = unit.scheduling.next_to_serve(user_id, TriedLater.code, MAX_WAITING, but=broken)
            if run is not None:
                return run
            # Others have locked the user's runs just now.
            del waiting[user]
        return None

    def publish(self, messages: Sequence[JobMessage]) -> None:
        """Send messages of what was just committed; see `publish_now`."""
        publish_now(self._ledger, self._publisher, messages)

    def add_shard(self, unit: UnitOfWork, run: Run, found: Slice, deaths: int = 0) -> JobMessage:
        """Add the shard of these items. Returns its message, to be published after the commit."""
        return self._add(
            unit,
            run,
            kind=JobKind.SHARD,
            queue=QUEUES[RunKind(run.kind)],
            request={"first": found.first, "last": found.last},
            lifetime=max(60.0, (run.expires_at - unit.now()).total_seconds()),
            deaths=deaths,
        )

    def add_finalization(self, unit: UnitOfWork, run: Run, **request: str) -> JobMessage:
        """Add the job that completes a run whose items have ended. Returns its message."""
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
            api_key_id=run.api_key_id,
            max_retries=self._max_retries,
            run_id=run.id,
        )
        return JobMessage.of(job)
