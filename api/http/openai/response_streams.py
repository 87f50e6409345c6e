"""Streams of responses: their events as they come, or again from any number."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable

import orjson
from fastapi import Request, Response
from sse_starlette import EventSourceResponse
from starlette.types import Receive, Scope, Send

from promptstack.api.http.direct import DirectCall
from promptstack.api.http.openai.errors import openai_error
from promptstack.api.http.problems import respond
from promptstack.api.http.still_allowed import StillAllowed
from promptstack.repositories.models import JobState
from promptstack.services.errors import KeyRevoked
from promptstack.services.events.places import Event
from promptstack.services.events.watcher import Watcher
from promptstack.services.jobs.views import JobView
from promptstack.services.openai.response_events import ResponseEvent, ResponseEvents
from promptstack.services.responses.views import ResponseView
from promptstack.services.streams.pieces import Position
from promptstack.services.validation.json_text import dump_json

CLOSE_SECONDS = 5.0
KEEP_ALIVE = b": keep-alive\n\n"
"""A comment, which no client reads: proxies cut off what says nothing."""


class ResponseStream(Response):
    """The events of a response until its end. A client that goes away may go on at any number."""

    def __init__(
        self,
        request: Request,
        call: DirectCall,
        view: ResponseView,
        *,
        after: int = -1,
        has_deadline: bool = True,
    ) -> None:
        """Take the number of the last event that the client has."""
        super().__init__()
        self._request = request
        self._call = call
        self._view = view
        self._events = ResponseEvents(
            view.id, view.body, is_background=view.is_background, after=after
        )
        has_deadline = has_deadline and not view.is_background
        self._deadline = time.monotonic() + call.seconds if has_deadline else float("inf")
        self._is_over = view.status.is_final

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. Where nobody asked to keep the response, its client's leaving ends it."""
        try:
            if self._is_over:
                await self._send(self._ended(), scope, receive, send)
                return
            hub, call = self._call.hub, self._call
            # Without `stream` it has no text until its end.
            with hub.watch(
                hub.jobs, call.job.id, call.user_id, with_text=bool(self._view.asked.get("stream"))
            ) as watcher:
                await self._send(self._live(watcher), scope, receive, send)
        finally:
            if not self._is_over:
                await self._call.cancel()

    async def _send(
        self, events: AsyncIterator[bytes], scope: Scope, receive: Receive, send: Send
    ) -> None:
        stream = EventSourceResponse(
            events,
            headers=self._call.headers,
            ping=0,
            # The hub ends the events when the server stops. This is for who does not read.
            shutdown_grace_period=CLOSE_SECONDS,
        )
        await stream(scope, receive, send)

    async def _ended(self) -> AsyncIterator[bytes]:
        """The events of a response that has ended."""
        for event in [*self._events.begin(), *self._end(self._view.job)]:
            yield written(event)

    async def _live(self, watcher: Watcher) -> AsyncIterator[bytes]:
        """Events as they come, and comments where none comes for a while."""
        allowed: StillAllowed = self._request.app.state.still_allowed
        heartbeat: float = self._request.app.state.stack.settings.events_heartbeat_seconds
        for event in self._events.begin():
            yield written(event)
        while not self._events.is_over:
            # Not around a `yield`: another task may go on after it.
            left = self._deadline - time.monotonic()
            if not await allowed.holds(self._request):
                told = respond(401, "The key is not valid any more.", code=KeyRevoked.code)
                yield written(self._broken(told))
                return
            try:
                async with asyncio.timeout(min(heartbeat, left)):
                    heard = await anext(watcher, None)
            except TimeoutError:
                if left <= heartbeat:
                    yield written(self._broken(await self._call.unanswered()))
                    return
                yield KEEP_ALIVE
                continue
            if heard is None:
                yield written(self._broken(await self._call.stopped()))
                return
            for event in self._told(heard):
                yield written(event)

    def _told(self, heard: Event) -> Iterable[ResponseEvent]:
        """The events of one thing that has happened."""
        if heard.kind == "end":
            self._is_over = True
            return self._end(JobView.model_validate_json(heard.data))
        said = orjson.loads(heard.data)
        if heard.kind == "restart":
            return self._events.restart(said["attempt"])
        if heard.kind == "text":
            return self._events.text(said["text"], Position.parse(heard.place.position).attempt)
        return self._events.run() if said["state"] == JobState.RUNNING else ()

    def _end(self, job: JobView) -> Iterable[ResponseEvent]:
        whole = self._view.with_job(job).body()
        return self._events.end(job.state, job.result, job.attempt, whole)

    def _broken(self, problem: Response) -> ResponseEvent:
        """Why this stream ends before its response."""
        return self._events.error(openai_error(orjson.loads(problem.body))["error"])


def written(event: ResponseEvent) -> bytes:
    """An event as it is sent."""
    return f"event: {event['type']}\ndata: ".encode() + dump_json(event) + b"\n\n"
