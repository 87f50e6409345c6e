"""Answers that wait for others: a provider, an object of a storage, a turn among many."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from uuid import UUID
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class SlotsOfUsers:
    """Bounds how much each user does at once. Who waits for a slot has no thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._slots: WeakValueDictionary[UUID, CapacityLimiter] = WeakValueDictionary()

    def of(self, user_id: UUID) -> CapacityLimiter:
        """The slots of one user."""
        return self._slots.setdefault(user_id, CapacityLimiter(self._most))


class AnswerLater(Response):
    """Answers by work in a thread, which begins as the answer is sent.

    So it runs on the server's own event loop. The handler of a large body has a loop and a thread
    for itself, which the large bodies of all users wait for.
    """

    def __init__(self, work: Callable[[], Response], *limiters: CapacityLimiter) -> None:
        """Take the work, and what bounds how much of its kind is done at once."""
        super().__init__()
        self._work = work
        self._limiters = limiters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Work in turn, then answer. Who waits has no thread."""
        async with AsyncExitStack() as turn:
            for limiter in self._limiters:
                await turn.enter_async_context(limiter)
            answer = await to_thread.run_sync(self._work)
        await answer(scope, receive, send)
