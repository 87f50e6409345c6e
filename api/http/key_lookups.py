"""API keys of requests that come together: found by one statement, in one thread."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from anyio import to_thread

from promptstack.repositories.access.presented_keys import PresentedKey

AT_ONCE = 2
"""Statements at once: one that is slow holds up no others."""

Find = Callable[[Sequence[str]], Mapping[str, PresentedKey]]
Asked = tuple[str, asyncio.Future[PresentedKey | None]]


class KeyLookups:
    """Finds the key of each request, after it came, with those of the others that wait then."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._waiting: list[Asked] = []
        self._running = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def find(self, secret: str) -> PresentedKey | None:
        """Return the key of a secret, which may be revoked or expired. Raises what `find` does."""
        found: asyncio.Future[PresentedKey | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((secret, found))
        if self._running < AT_ONCE:
            # It starts once all requests that are here already have asked.
            self._running += 1
            task = asyncio.create_task(self._look_up())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await found

    async def _look_up(self) -> None:
        try:
            while self._waiting:
                asked, self._waiting = self._waiting, []
                await self._answer(asked)
        finally:
            # At once, and not when the task is seen to be over: who asks in between would wait.
            self._running -= 1

    async def _answer(self, asked: Sequence[Asked]) -> None:
        try:
            keys = await to_thread.run_sync(self._find, [secret for secret, _ in asked])
        except Exception as error:  # noqa: BLE001 - each request is told
            for _, found in asked:
                if not found.done():
                    found.set_exception(error)
        else:
            for secret, found in asked:
                if not found.done():  # a request may be gone
                    found.set_result(keys.get(secret))
