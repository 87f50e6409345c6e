"""Looks up names of receivers, so that names whose servers hang hold up no other user's events."""

import asyncio
from asyncio import FIRST_COMPLETED
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from uuid import UUID

from promptstack.services.webhooks.errors import NamesBusy

LOOKUPS = 64
"""Names looked up at once in a process: a look-up that hangs can't be broken off."""
LOOKUPS_OF_USER = 4
"""Of these."""
LookUp = Callable[[str, int], Sequence[str]]
"""Finds the addresses of a host and port. It may take long."""
Name = tuple[str, int]

asking_user: ContextVar[UUID | None] = ContextVar("asking_user", default=None)
"""Whose event is being sent: aiohttp asks for names with no more than the name."""


class Names:
    """Looks up names in threads of its own. Lives on one event loop."""

    def __init__(self, look_up: LookUp, *, wait_seconds: float) -> None:
        """Take the longest wait for a thread."""
        self._look_up = look_up
        self._wait_seconds = wait_seconds
        # Not the loop's own threads: names of providers are looked up there.
        self._threads = ThreadPoolExecutor(LOOKUPS, "webhook-names")
        self._asked: dict[Name, asyncio.Future[Sequence[str]]] = {}
        self._of_users: Counter[UUID | None] = Counter()

    async def find(self, host: str, port: int) -> Sequence[str]:
        """The addresses of a host. Raises `NamesBusy`, and what the look-up raises.

        Who asks for a name that is being looked up waits for the same answer.
        """
        name, user = (host, port), asking_user.get()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_seconds):
                while name not in self._asked and not self._has_room(user):
                    await asyncio.wait(self._asked.values(), return_when=FIRST_COMPLETED)
        if name not in self._asked:
            if not self._has_room(user):
                raise NamesBusy("The names of other webhooks are looked up, which takes long.")
            self._begin(name, user)
        # It goes on when nobody waits for it any more, and keeps its room.
        return await asyncio.shield(self._asked[name])

    def _has_room(self, user: UUID | None) -> bool:
        return len(self._asked) < LOOKUPS and self._of_users[user] < LOOKUPS_OF_USER

    def _begin(self, name: Name, user: UUID | None) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.run_in_executor(self._threads, self._look_up, *name)
        self._asked[name] = asked
        self._of_users[user] += 1
        asked.add_done_callback(partial(self._end, name, user))

    def _end(self, name: Name, user: UUID | None, asked: asyncio.Future[Sequence[str]]) -> None:
        del self._asked[name]
        self._of_users[user] -= 1
        if not self._of_users[user]:
            del self._of_users[user]
        if not asked.cancelled():
            asked.exception()  # it is no news, where nobody waits any more

    def close(self) -> None:
        """Let the threads end; look-ups that hang are left."""
        self._threads.shutdown(wait=False, cancel_futures=True)
