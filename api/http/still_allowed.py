"""Whether those whose answers take long may still have them: keys are revoked, sessions end."""

import asyncio
import logging
import time
from collections.abc import Hashable

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from promptstack.api.http.auth import identify
from promptstack.repositories.errors import TransientLedgerError
from promptstack.services.access.caller import Caller
from promptstack.services.errors import NotAuthenticated, NotPermitted

logger = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
CREDENTIAL_HEADERS = ("authorization", "x-api-key", "cookie")
MAX_KNOWN = 10_000


class StillAllowed:
    """Asks again who sends a request, each 30 seconds, and once for all requests of one sender."""

    def __init__(self, seconds: float = CHECK_SECONDS) -> None:
        self._seconds = seconds
        self._thread = CapacityLimiter(1)
        self._answers: dict[Hashable, tuple[float, asyncio.Future[bool]]] = {}

    async def holds(self, request: Request) -> bool:
        """Whether the sender is who they were, and may do what they might."""
        now = time.monotonic()
        asked_at = getattr(request.state, "asked_at", None)
        if asked_at is None:
            request.state.asked_at = now
            return True
        if now - asked_at < self._seconds:
            return True
        request.state.asked_at = now
        return await self._ask(request, now)

    async def _ask(self, request: Request, now: float) -> bool:
        credential = _credential(request)
        known = self._answers.get(credential)
        if known is not None and now - known[0] < self._seconds / 2:
            return await asyncio.shield(known[1])
        if len(self._answers) >= MAX_KNOWN:
            self._answers.clear()
        answer = asyncio.ensure_future(to_thread.run_sync(_is_same, request, limiter=self._thread))
        self._answers[credential] = now, answer
        return await asyncio.shield(answer)


def _credential(request: Request) -> Hashable:
    caller: Caller = request.state.caller
    sent = tuple(tuple(request.headers.getlist(name)) for name in CREDENTIAL_HEADERS)
    return caller.user_id, caller.is_admin, sent


def _is_same(request: Request) -> bool:
    before: Caller = request.state.caller
    try:
        now = identify(request)
    except (NotAuthenticated, NotPermitted):
        return False
    except TransientLedgerError as error:
        logger.warning("whether watchers still may is looked at later: %s", error.code)
        return True
    return (now.user_id, now.is_admin) == (before.user_id, before.is_admin)
