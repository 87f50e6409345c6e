"""Usage for who looks again and again, such as a dashboard: the sums may be some seconds old.

Nothing that decides about money asks here: budgets and limits of cost are read from the ledger.
"""

import asyncio
from typing import Any

from promptstack.repositories.usage import Usage
from promptstack.services.accounting.usage import UsageService
from promptstack.services.cache.cache import Cache
from promptstack.services.cache.cached import Aged, cached


class RecentUsage:
    """The sums of `UsageService`, kept for some seconds. Each says how old it is."""

    def __init__(self, usage: UsageService, cache: Cache, seconds: float) -> None:
        """Keep a sum for `seconds`; 0 asks the ledger each time."""
        self._usage = usage
        self._recent = None
        if seconds:
            # An older one is good enough for those who come while the ledger is asked.
            self._recent = cached(seconds, stale=seconds, cache=cache)(usage.sums)

    async def sums(self, *, fresh: bool = False, **which: Any) -> Aged[list[Usage]]:
        """Sum calls as `UsageService.sums` does; with `fresh`, by asking the ledger now.

        Who waits for the sum of another one holds no thread: a dashboard asks again and again.
        """
        if self._recent is None:
            return Aged(await asyncio.to_thread(self._usage.sums, **which), 0.0)
        if fresh:
            await asyncio.to_thread(self._recent.invalidate, **which)
        return await self._recent.aged_later(**which)
