"""Bulk jobs of all users, sent to workers in turns.

A queue of the broker is first in, first out: a user's hundred thousand bulk jobs would stand before
another's one, and before the shards of runs. So bulk jobs wait in the ledger, and only as many have
a message as workers take in a moment. Whoever adds bulk jobs sends the first of them; workers send
more whenever some have ended. Each process does it now and then, beside what it is doing.
"""

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

from promptstack.config.names import Queue
from promptstack.config.setting_types import TierWeights
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.session import Ledger
from promptstack.services.jobs.publishing import (
    BrokerUnavailable,
    JobMessage,
    Publisher,
    publish_marked,
)
from promptstack.services.sharing.turns import NOBODY, Turns

logger = logging.getLogger(__name__)

BULK_QUEUES = tuple(queue for queue in Queue if queue.is_bulk)
MOST_AT_ONCE, MOST_USERS = 500, 100
"""Jobs in one transaction, and users among whom they are shared out."""
ROUNDS = 8
"""Transactions of one call."""
REST_SECONDS = 0.1
"""How long a process rests between two times at which it sends some."""
EPOCH_SECONDS = 1.0
"""How old the broker's epoch may be: where it has changed since, a job is sent twice."""
AHEAD_SECONDS = 0.5
"""For how long a worker's messages last, at its pace."""


class BulkJobs:
    """Sends bulk jobs to workers. Any process does it, and a lock lets one at a time.

    Nobody who calls it hears of an error: the jobs are in the ledger, and are sent later.
    """

    def __init__(
        self,
        ledger: Ledger,
        publisher: Publisher,
        *,
        jobs_a_worker: int,
        worker_lost_seconds: float,
        weights: TierWeights,
        pace: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take how many jobs a worker has in hand at once, and the `pace` at which they end."""
        self._ledger = ledger
        self._publisher = publisher
        self._jobs_a_worker = jobs_a_worker
        self._worker_lost_seconds = worker_lost_seconds
        self._weights = weights
        self._pace = pace
        self._clock = clock
        self._waiting: set[Queue] = set()
        """The queues for which jobs were left, when this process looked."""
        self._most: dict[Queue, int] = {}
        """How many messages a queue may hold, as it was last. At half of it more are sent."""
        self._lock = threading.Lock()
        self._rests_until = dict.fromkeys(BULK_QUEUES, 0.0)
        self._wanted: set[Queue] = set()
        """The queues for which the thread sends some next."""
        self._thread = ThreadPoolExecutor(1, "bulk-jobs")
        self._is_closed = threading.Event()

    def close(self) -> None:
        """End the thread, once it has sent what it was asked for."""
        self._is_closed.set()
        self._thread.shutdown()

    def give_out(self, queues: Collection[Queue] = BULK_QUEUES) -> None:
        """Send as many jobs as workers have room for."""
        try:
            for queue in queues:
                for number in range(ROUNDS):
                    if not self._give_out(queue, is_first=number == 0):
                        break
        except (BrokerUnavailable, TransientLedgerError) as error:
            logger.warning("bulk jobs are sent later: %s", error)
        except Exception:
            logger.exception("bulk jobs could not be sent, and are later")

    def after_enqueue(self, queues: Collection[Queue]) -> None:
        """Send jobs now, or in a moment where this process has just done so.

        So who adds one job to an idle deployment has it sent at once, and who adds many one by one
        doesn't wait for it each time.
        """
        with self._lock:
            now = self._clock()
            rested = [queue for queue in queues if now >= self._rests_until[queue]]
            self._rest(rested)
        self.give_out(rested)
        if resting := [queue for queue in queues if queue not in rested]:
            self._give_out_soon(resting)

    def after_job(self) -> None:
        """Send more in a moment, where some were left. Called when a job has ended."""
        if self._waiting:
            self._give_out_soon(tuple(self._waiting))

    def _give_out_soon(self, queues: Collection[Queue]) -> None:
        with self._lock:
            is_asked = bool(self._wanted)
            self._wanted.update(queues)
            if is_asked or self._is_closed.is_set():
                return
            try:
                self._thread.submit(self._give_out_wanted)
            except RuntimeError:  # the process ends
                self._wanted.clear()

    def _give_out_wanted(self) -> None:
        until = max(self._rests_until[queue] for queue in tuple(self._wanted))
        self._is_closed.wait(max(0.0, until - self._clock()))
        with self._lock:
            queues, self._wanted = self._wanted, set()
        self.give_out(queues)
        self._rest(queues)

    def _rest(self, queues: Collection[Queue]) -> None:
        for queue in queues:
            self._rests_until[queue] = self._clock() + REST_SECONDS

    def _give_out(self, queue: Queue, *, is_first: bool) -> bool:
        """Send some jobs. Returns whether there may be room for more."""
        waiting = self._publisher.waiting(queue)
        if is_first and 2 * waiting > self._most.get(queue, math.inf):
            self._waiting.add(queue)
            return False  # workers have enough for now
        epoch = self._publisher.epoch(EPOCH_SECONDS)
        with self._ledger.transaction() as unit:
            if not unit.try_lock(f"bulk:{queue}"):
                self._waiting.add(queue)  # whoever sends some may have looked too early
                return False
            workers = max(1, unit.workers.count_alive(self._worker_lost_seconds))
            a_worker = max(2 * self._jobs_a_worker, int(self._pace() * AHEAD_SECONDS))
            self._most[queue] = workers * a_worker
            room = min(MOST_AT_ONCE, self._most[queue] - waiting)
            if room <= 0:
                self._waiting.add(queue)
                return False
            turns = Turns(*unit.turns.read(queue))
            users = unit.held_jobs.users(queue, turns.last or NOBODY, MOST_USERS)
            if not users:
                self._waiting.discard(queue)
                return False
            turns.keep(users)
            weights = {user: self._weights.of(tier) for user, tier in users.items()}
            order = turns.share_out(weights, room)
            taken: dict[UUID, deque[JobMessage]] = {user: deque() for user in users}
            for job in unit.held_jobs.take(queue, Counter(order), epoch):
                taken[job.user_id or NOBODY].append(JobMessage.of(job))
            messages = []
            for user in order:
                if taken[user]:
                    messages.append(taken[user].popleft())
                else:
                    turns.charge(user, -1.0)  # it has no more
            unit.turns.write(queue, turns.last, turns.credits)
        self._waiting.add(queue)
        publish_marked(self._ledger, self._publisher, messages)
        return bool(messages)
