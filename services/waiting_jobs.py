"""Jobs that wait in the ledger for a rate limit: called back when there is room."""

from collections.abc import Iterator

from repositories.session import Ledger, UnitOfWork
from services.errors import UnknownProvider
from services.limited_calls import LimitedCalls
from services.llm.event_loop import EventLoop
from services.llm.pool import ProviderPool


class WaitingJobs:
    """Knows who waits, and asks the limiter how many may come.

    A job is told at its wait when its turn may come. That is a guess: limits rise, and calls need
    less than was feared.
    """

    def __init__(
        self, ledger: Ledger, providers: ProviderPool, calls: LimitedCalls, loop: EventLoop
    ) -> None:
        self._ledger = ledger
        self._providers = providers
        self._calls = calls
        self._loop = loop

    def call_back(self) -> int:
        """Let as many jobs be due as their limits have room for; how many."""
        with self._ledger.transaction() as unit:
            waited_for = list(_models(unit))
        called = 0
        for provider, model in waited_for:
            room = self._room(provider, model)
            if room > 0:
                with self._ledger.transaction() as unit:
                    called += unit.rings.call_back(provider, model, room)
        return called

    def _room(self, provider: str, model: str) -> int:
        try:
            service = self._providers.get(provider)
        except UnknownProvider:
            return 0  # known to other workers only
        return self._loop.run(self._calls.room(service, model))


def _models(unit: UnitOfWork) -> Iterator[tuple[str, str]]:
    found = unit.rings.next_waiting(("", ""))
    while found is not None:
        yield found
        found = unit.rings.next_waiting(found)
