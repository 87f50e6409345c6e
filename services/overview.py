"""The deployment at a glance: open jobs, workers, and which providers answer."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from promptstack.config.errors import PromptStackError
from promptstack.repositories.session import Ledger
from promptstack.services.cache.cache import Cache
from promptstack.services.cache.cached import Aged, cached
from promptstack.services.llm.event_loop import EventLoop
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.pool import ProviderPool

COUNTS_SECONDS = 2.0
PROVIDERS_SECONDS = 30.0
"""How old an answer may be. Each is of an exchange across a network, and some take seconds."""
PATIENCE_SECONDS = 3.0
"""How long a provider's answer is waited for."""


@dataclass(frozen=True)
class Counts:
    """What there is to do, and who does it."""

    jobs: Mapping[str, int]
    """Open jobs by their state."""
    workers: int
    """Workers alive."""


@dataclass(frozen=True)
class ProviderStatus:
    """Whether a provider answers."""

    name: str
    answers: bool | None
    """None where the process that looked has no key or address for it."""
    reason: str | None
    """Why it does not."""


class Overview:
    """Looks at the deployment. Many may ask again and again: what is seen is shared for seconds."""

    def __init__(
        self,
        ledger: Ledger,
        cache: Cache,
        factory: LLMServiceFactory,
        providers: ProviderPool,
        loop: EventLoop,
        *,
        worker_lost_seconds: float,
    ) -> None:
        self.cache = cache
        self._ledger = ledger
        self._factory = factory
        self._providers = providers
        self._loop = loop
        self._worker_lost_seconds = worker_lost_seconds

    async def counts(self) -> Aged[Counts]:
        """Open jobs and workers."""
        return await self._counts.aged_later()

    async def providers(self) -> Aged[Sequence[ProviderStatus]]:
        """All providers by name. They are asked at once, and none costs anything."""
        return await self._statuses.aged_later()

    @cached(COUNTS_SECONDS, key="overview.counts")
    def _counts(self) -> Counts:
        with self._ledger.transaction() as unit:
            workers = unit.workers.count_alive(self._worker_lost_seconds)
            return Counts(unit.jobs.count_open(), workers)

    @cached(PROVIDERS_SECONDS, key="overview.providers", stale=PROVIDERS_SECONDS)
    def _statuses(self) -> Sequence[ProviderStatus]:
        asked = {
            name: self._loop.submit(self._ask(name))
            for name in self._factory.names()
            if self._factory.is_set_up(name)
        }
        return [
            asked[name].result() if name in asked else ProviderStatus(name, None, "It has no key.")
            for name in self._factory.names()
        ]

    async def _ask(self, name: str) -> ProviderStatus:
        try:
            # In a thread: the first use of a provider imports its SDK.
            service = await asyncio.to_thread(self._providers.get, name)
            async with asyncio.timeout(PATIENCE_SECONDS):
                found = await service.examine()
        except TimeoutError:
            return ProviderStatus(name, False, f"No answer within {PATIENCE_SECONDS:g} s.")
        except PromptStackError as error:
            return ProviderStatus(name, False, str(error))
        return ProviderStatus(name, found.answers, found.reason or None)
