"""Streams of direct calls: the text of a job as it is produced, in the words of a wire."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

import orjson
from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from promptstack.api.http.direct import DirectCall, or_gone
from promptstack.api.http.problems import respond
from promptstack.api.http.still_allowed import StillAllowed
from promptstack.repositories.models import JobState
from promptstack.services.errors import KeyRevoked
from promptstack.services.events.places import Event
from promptstack.services.events.watcher import Watcher
from promptstack.services.jobs.views import JobView

CLOSE_SECONDS = 5.0
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which no client reads: proxies cut off what says nothing."""


class Wire(Protocol):
    """How the stream of one answer is written: whole server-sent events."""

    def begin(self) -> Iterable[bytes]:
        """What comes before the text."""

    def text(self, piece: str) -> Iterable[bytes]:
        """The next piece of the text."""

    def end(self, job: JobView) -> Iterable[bytes]:
        """What comes after the text of a job that has succeeded."""

    def broken(self, problem: Response) -> Iterable[bytes]:
        """Why the answer ends here; `problem` is as it would have been answered before a text."""


class Diverged(Exception):
    """The answer began again, and is another than what was told."""


class ToldOnce:
    """Tells a text once, also where it begins again: a job may have to try again.

    What comes then is told from where it goes on after what was told. Where it differs from that,
    nobody could put the two together.
    """

    def __init__(self) -> None:
        self._told: list[str] = []
        self._again: str | None = None
        """What came since it began again; None where all of it was told."""

    def begin_again(self) -> None:
        """Note that the text begins again."""
        self._again = ""

    def hear(self, text: str) -> str:
        """What of a piece is to be told. Raises `Diverged`."""
        if self._again is None:
            self._told.append(text)
            return text
        told = "".join(self._told)
        self._again += text
        common = min(len(told), len(self._again))
        if told[:common] != self._again[:common]:
            raise Diverged
        if len(self._again) < len(told):
            return ""
        rest, self._again = self._again[len(told) :], None
        self._told = [told, rest]
        return rest

    def check_whole(self) -> None:
        """Raise `Diverged` where more was told than the answer has."""
        if self._again is not None and self._told:
            raise Diverged


class DirectStream(Response):
    """Answers with the text of a job as it comes.

    What fails before the first piece is answered by its status, as without a stream.
    """

    def __init__(self, request: Request, call: DirectCall, wire: Wire) -> None:
        super().__init__()
        self._request = request
        self._call = call
        self._wire = wire
        self._text = ToldOnce()
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that goes away ends it, and so its job."""
        call = self._call
        try:
            with call.hub.watch(
                call.hub.jobs, call.job.id, call.user_id, with_text=True, only_end=True
            ) as watcher:
                pieces = self._pieces(watcher)
                first = await or_gone(anext(pieces), receive)
                if isinstance(first, Response):
                    self._is_over = True
                    await first(scope, receive, send)
                elif first is not None:
                    stream = EventSourceResponse(
                        _joined(first, pieces),
                        headers=call.headers,
                        ping=0,
                        # The hub ends the events when the server stops. This is for who does not
                        # read.
                        shutdown_grace_period=CLOSE_SECONDS,
                    )
                    await stream(scope, receive, send)
        finally:
            if not self._is_over:
                await call.cancel()

    async def _pieces(self, watcher: Watcher) -> AsyncIterator[bytes | Response]:
        """What is written; first of all a problem, where there is nothing else to write."""
        has_started = has_begun = False
        try:
            async for piece in self._written(watcher):
                has_started = True
                if has_begun or piece is KEEP_ALIVE:
                    yield piece
                else:
                    has_begun = True
                    yield b"".join([*self._wire.begin(), piece])
        except _Broken as broken:
            if has_started:
                for piece in self._wire.broken(broken.problem):
                    yield piece
            else:
                yield broken.problem

    async def _written(self, watcher: Watcher) -> AsyncIterator[bytes]:
        """The text, its end, and comments where nothing comes for a while."""
        allowed: StillAllowed = self._request.app.state.still_allowed
        heartbeat: float = self._request.app.state.stack.settings.events_heartbeat_seconds
        deadline = time.monotonic() + self._call.seconds
        while await allowed.holds(self._request):
            # Not around a `yield`: another task may go on after it.
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(min(heartbeat, left)):
                    event = await anext(watcher, None)
            except TimeoutError:
                if left <= heartbeat:
                    raise _Broken(await self._call.unanswered()) from None
                yield KEEP_ALIVE
                continue
            if event is None:
                raise _Broken(await self._call.stopped())
            for piece in await self._told(event):
                yield piece
            if event.kind == "end":
                return
        raise _Broken(respond(401, "The key is not valid any more.", code=KeyRevoked.code))

    async def _told(self, event: Event) -> Iterable[bytes]:
        """What is written of an event. Raises `_Broken`."""
        try:
            if event.kind == "end":
                return await self._ended(JobView.model_validate_json(event.data))
            if event.kind == "restart":
                self._text.begin_again()
            elif event.kind == "text" and (
                text := self._text.hear(orjson.loads(event.data)["text"])
            ):
                return self._wire.text(text)
        except Diverged:
            raise _Broken(self._diverged()) from None
        return ()

    async def _ended(self, job: JobView) -> Iterable[bytes]:
        self._is_over = True
        if job.state is not JobState.SUCCEEDED:
            raise _Broken(await self._call.refusal(job))
        self._text.check_whole()
        return self._wire.end(job)

    def _diverged(self) -> Response:
        said = (
            f"The answer of job {self._call.job.id} began again with another text, after a part of "
            "it was sent. Forget that part, and ask again."
        )
        return respond(502, said, code="answer_began_again", headers=self._call.headers)


class _Broken(Exception):
    """The stream ends without an answer."""

    def __init__(self, problem: Response) -> None:
        super().__init__()
        self.problem = problem


async def _joined(first: bytes, others: AsyncIterator[bytes | Response]) -> AsyncIterator[bytes]:
    yield first
    async for piece in others:
        if isinstance(piece, bytes):
            yield piece


def event(data: object) -> bytes:
    """A server-sent event without a name, as OpenAI's clients read it."""
    return b"data: " + orjson.dumps(data) + b"\n\n"
