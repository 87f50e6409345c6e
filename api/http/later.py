"""Answers that wait for others: a provider, an object of a storage, a turn among many."""

from collections.abc import Callable
from contextlib import nullcontext

from anyio import CapacityLimiter, to_thread
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class AnswerLater(Response):
    """Answers by work in a thread, which begins as the answer is sent.

    So it runs on the server's own event loop. The handler of a large body has a loop and a thread
    for itself, which the large bodies of all users wait for.
    """

    def __init__(
        self, work: Callable[[], Response], limiter: CapacityLimiter | None = None
    ) -> None:
        """Take the work, and what bounds how much of its kind is done at once."""
        super().__init__()
        self._work = work
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Work in turn, then answer. Who waits has no thread."""
        async with self._limiter or nullcontext():
            answer = await to_thread.run_sync(self._work)
        await answer(scope, receive, send)
