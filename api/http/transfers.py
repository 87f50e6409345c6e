"""Large bodies that are sent and received piece by piece: how many at once, and for whom."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from uuid import UUID

from anyio import CancelScope, CapacityLimiter, to_thread
from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from promptstack.services.access.errors import TooManyRequests
from promptstack.services.errors import InvalidInput

SENT_AT_ONCE = 262_144
RETRY_SECONDS = 5.0
READ_SECONDS = "read_seconds"
"""In the state of a request: the time in which its body may arrive. The connection asks for it."""


class TooManyTransfers(TooManyRequests):
    """As many transfers are under way as this server allows."""

    code = "TOO_MANY_TRANSFERS"


class TooLarge(InvalidInput):
    """The file is larger than this server takes."""

    code = "CONTENT_TOO_LARGE"


class TransferSlots:
    """The slots of one kind of transfer. Nobody waits for one, as that would hold a connection."""

    def __init__(self, what: str, *, most: int, of_one_user: int, settings: str) -> None:
        self._what = what
        self._most = most
        self._of_one_user = of_one_user
        self._settings = settings
        self._taken: Counter[UUID] = Counter()
        self._lock = Lock()

    @contextmanager
    def taken_by(self, user_id: UUID) -> Iterator[None]:
        """Hold a slot. Raises `TooManyTransfers`."""
        with self._lock:
            self._take(user_id)
        try:
            yield
        finally:
            with self._lock:
                self._taken[user_id] -= 1
                self._taken += Counter()  # forgets who has none

    def _take(self, user_id: UUID) -> None:
        if self._taken[user_id] >= self._of_one_user:
            raise TooManyTransfers(
                f"You have {self._of_one_user} {self._what} under way, and more are not allowed "
                f"({self._settings}_OF_ONE_USER); try again when one has ended.",
                retry_after=RETRY_SECONDS,
            )
        if self._taken.total() >= self._most:
            raise TooManyTransfers(
                f"This server has {self._most} {self._what} under way, and takes no more "
                f"({self._settings}); try again later.",
                retry_after=RETRY_SECONDS,
            )
        self._taken[user_id] += 1


class SentInBlocks(StreamingResponse):
    """A body that threads make block by block: one is made while the one before it is sent.

    When the client goes away, the block that is being made is the last one.
    """

    def __init__(
        self,
        blocks: Iterator[bytes],
        makers: CapacityLimiter,
        held: ExitStack,
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str | None = None,
    ) -> None:
        """Take what is `held` until all is sent."""
        self._body = _sent(blocks, makers)
        super().__init__(self._body, status_code, headers, media_type)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        with self._held:
            try:
                await super().__call__(scope, receive, send)
            finally:
                with CancelScope(shield=True):
                    await self._body.aclose()


async def _sent(blocks: Iterator[bytes], makers: CapacityLimiter) -> AsyncGenerator[bytes]:
    async def make() -> bytes | None:
        return await to_thread.run_sync(next, blocks, None, limiter=makers)

    upcoming = asyncio.create_task(make())
    try:
        while (block := await asyncio.shield(upcoming)) is not None:
            upcoming = asyncio.create_task(make())
            for start in range(0, len(block), SENT_AT_ONCE):
                yield block[start : start + SENT_AT_ONCE]
    finally:
        with CancelScope(shield=True):
            # A thread can't be stopped, and what it works on can't be closed before.
            await asyncio.gather(upcoming, return_exceptions=True)
            await to_thread.run_sync(getattr(blocks, "close", lambda: None), limiter=makers)


async def make_all(blocks: Iterator[bytes], makers: CapacityLimiter, request: Request) -> None:
    """Make all blocks and keep none. Raises `ClientDisconnect` when nobody waits any more."""
    try:
        while await to_thread.run_sync(next, blocks, None, limiter=makers) is not None:
            if await request.is_disconnected():
                raise ClientDisconnect
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(getattr(blocks, "close", lambda: None), limiter=makers)


@dataclass(frozen=True)
class Uploads:
    """The uploads that one application receives, and their bounds."""

    slots: TransferSlots
    max_bytes: int
    seconds: float


class Downloads:
    """The downloads that one application sends."""

    def __init__(self, *, most: int, of_one_user: int, made_at_once: int) -> None:
        self.slots = TransferSlots(
            "downloads", most=most, of_one_user=of_one_user, settings="MAX_DOWNLOADS"
        )
        self.makers = CapacityLimiter(made_at_once)
        """Each block is made by a thread with a connection to the database."""
