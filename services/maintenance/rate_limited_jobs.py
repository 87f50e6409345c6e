"""Jobs that wait in the ledger for a rate limit: they become due when there is room."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from promptstack.config.setting_types import TierWeights
from promptstack.repositories.jobs.outbox import Waits
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import UnknownProvider
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.sharing.turns import NOBODY, Turns

STEP_SECONDS = 2.0
"""Longest time of a round, in which messages wait to be sent."""
MOST_SHOWN = 20
MOST_AT_ONCE, MOST_USERS = 2_000, 100
"""Jobs of a model that become due in a round, and users among whom they are shared out."""
FIRST = ("", "")


class RateLimitedJobs:
    """Knows which jobs wait and asks the limiter how many may run.

    The time that a job was given when it began to wait is a guess: limits rise, and calls need
    less than their estimates.
    """

    def __init__(
        self,
        ledger: Ledger,
        providers: ProviderPool,
        calls: LimitedCalls,
        loop: EventLoop,
        *,
        weights: TierWeights | None = None,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        self._weights = weights or TierWeights()
        self._turns: dict[tuple[str, str], Turns] = {}
        """Of each model. Each process has its own: they need not agree."""
        self._ledger = ledger
        self._providers = providers
        self._calls = calls
        self._loop = loop
        self._timer = timer
        self._last = FIRST
        """The last model of a round that had no time for the others."""

    def call_back(self) -> int:
        """Make as many jobs due as their limits have room for. Returns how many.

        Where the limiter answers slowly, the next round goes on with the models that are left.
        """
        with self._ledger.transaction() as unit:
            waited_for = list(_models(unit, self._last))
        began = self._timer()
        called = 0
        for provider, model in waited_for:
            if self._timer() - began > STEP_SECONDS:
                break
            self._last = (provider, model)
            room = self._room(provider, model)
            if room > 0:
                called += self._call_back(provider, model, min(room, MOST_AT_ONCE))
        else:
            self._last = FIRST
        return called

    def _call_back(self, provider: str, model: str, room: int) -> int:
        """Make so many jobs of a model due, in turns between their users. Returns how many."""
        turns = self._turns.setdefault((provider, model), Turns())
        called = 0
        with self._ledger.transaction() as unit:
            last = turns.last or NOBODY
            users = unit.outbox.users_waiting(provider, model, last, MOST_USERS)
            weights = {user: self._weights.of(tier) for user, tier in users.items()}
            turns.keep(weights)
            # Again, where a user has fewer than their share.
            while weights and called < room:
                counts = Counter(turns.share_out(weights, room - called))
                now_due = unit.outbox.call_back(provider, model, counts)
                called += sum(now_due.values())
                for user, count in counts.items():
                    if now_due.get(user, 0) < count:
                        turns.charge(user, now_due.get(user, 0) - count)
                        del weights[user]
        return called

    def who(self, run_id: UUID | None = None) -> Sequence[Waits]:
        """Return which jobs wait, for what and until when: all of them, or the shards of a run."""
        with self._ledger.transaction() as unit:
            return unit.outbox.waits(run_id, MOST_SHOWN)

    def _room(self, provider: str, model: str) -> int:
        try:
            service = self._providers.get(provider)
        except UnknownProvider:
            return 0  # known to other workers only
        return self._loop.run(self._calls.room(service, model))


def _models(unit: UnitOfWork, after: tuple[str, str]) -> Iterator[tuple[str, str]]:
    found = unit.outbox.next_waiting(after)
    while found is not None:
        yield found
        found = unit.outbox.next_waiting(found)
