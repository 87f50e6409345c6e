"""Events of a job or run, as they happen: Server-Sent Events."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from promptstack.api.http.auth import Owner, Stack
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.still_allowed import StillAllowed
from promptstack.services.events.hub import EventHub
from promptstack.services.events.places import ID_PATTERN, Event, Place
from promptstack.services.events.topics import Topic, job_end, run_end
from promptstack.services.events.watcher import Watcher

router = APIRouter(route_class=ProtectedRoute)

MEDIA_TYPE = "text/event-stream"
RECONNECT_MILLISECONDS = 1_000
PIECE_BYTES = 65_536
"""Written at once: what a slow client has not read of an event waits in the event, which holds it
once for all clients."""
CLOSE_SECONDS = 5.0
NEWLINE = "\n"
EVENT = {
    "type": "object",
    "description": "Each event.",
    "properties": {
        "id": {"type": "string", "description": "Send it as Last-Event-ID to go on after it."},
        "event": {"enum": ["state", "progress", "text", "restart", "end"]},
        "data": {"type": "string", "description": "JSON, in one line."},
    },
    "required": ["id", "event", "data"],
}


async def get_since(
    since: Annotated[
        str | None,
        Query(
            pattern=f"^{ID_PATTERN}$",
            description="The `id` of the last event that you have: go on after it. For clients "
            "that can't send the header `Last-Event-ID`, which goes before it.",
        ),
    ] = None,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            pattern=f"^({ID_PATTERN})?$",
            description="The same. Browsers send it by themselves.",
        ),
    ] = None,
) -> Place:
    """Return how far the sender has read."""
    given = last_event_id or since
    return Place.read(given) if given else Place()


Since = Annotated[Place, Depends(get_since)]


def _answers(what: str, kind: str, data: str) -> dict[int | str, dict[str, Any]]:
    example = {"id": "4be1fd2b2c8a.0", "event": kind, "data": data}
    return {
        200: {
            "description": f"The events of the {what}, until it has ended.",
            "content": {MEDIA_TYPE: {"schema": EVENT, "example": example}},
        },
        204: {"description": "It has ended, and you had its `end`: don't ask again."},
    }


class EventStream(Response):
    """Streams the events of a job or run until its end, or until the server stops."""

    media_type = MEDIA_TYPE

    def __init__(
        self,
        request: Request,
        topic: Topic,
        one: UUID,
        since: Place,
        *,
        with_text: bool = False,
    ) -> None:
        """Take who asks, what for, and how far they have read."""
        super().__init__()
        self._with_text = with_text
        self._request = request
        self._topic = topic
        self._one = one
        self._since = since

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them. A client that goes away ends it."""
        hub: EventHub = self._request.app.state.events
        user_id = self._request.state.caller.user_id
        with hub.watch(
            self._topic, self._one, user_id, self._since, with_text=self._with_text
        ) as watcher:
            stream = EventSourceResponse(
                self._written(watcher),
                ping=0,
                # The hub ends the events when the server stops. This is for who does not read.
                shutdown_grace_period=CLOSE_SECONDS,
            )
            await stream(scope, receive, send)

    async def _written(self, watcher: Watcher) -> AsyncIterator[bytes]:
        """The events as they are written, and comments where none comes for a while."""
        allowed: StillAllowed = self._request.app.state.still_allowed
        heartbeat: float = self._request.app.state.stack.settings.events_heartbeat_seconds
        yield ServerSentEvent(retry=RECONNECT_MILLISECONDS, sep=NEWLINE).encode()
        while await allowed.holds(self._request):
            try:
                async with asyncio.timeout(heartbeat):
                    event = await anext(watcher, None)
            except TimeoutError:
                yield ServerSentEvent(comment="heartbeat", sep=NEWLINE).encode()
                continue
            if event is None:
                return
            for piece in pieces(event):
                yield piece


def pieces(event: Event) -> Iterator[bytes]:
    """An event as it is written, none of it copied before it is due."""
    # Not by ServerSentEvent, which looks for ends of lines in data that has none.
    data, piece = event.encoded, f"id: {event.place}\nevent: {event.kind}\ndata: ".encode()
    for first in range(0, len(data), PIECE_BYTES):
        if first:
            yield piece
            piece = b""
        piece += data[first : first + PIECE_BYTES]
    yield piece + b"\n\n"


@router.get(
    "/jobs/{job_id}/events",
    tags=["jobs"],
    status_code=200,
    response_class=EventStream,
    response_model=None,
    responses=_answers("job", "state", '{"state":"running"}'),
)
def watch_job(job_id: UUID, request: Request, stack: Stack, owner: Owner, since: Since) -> Response:
    """Watch a job: its states as they change, its text where it streams, and its end."""
    job = stack.jobs.get(job_id, owner=owner)
    if job.state.is_final and job_end(job).digest == since.shown:
        return Response(status_code=204)
    jobs = stack.events.jobs
    return EventStream(request, jobs, job.id, since, with_text=jobs.has_text(job.id))


@router.get(
    "/runs/{run_id}/events",
    tags=["runs"],
    status_code=200,
    response_class=EventStream,
    response_model=None,
    responses=_answers("run", "progress", '{"succeeded":12}'),
)
def watch_run(run_id: UUID, request: Request, stack: Stack, owner: Owner, since: Since) -> Response:
    """Watch a run: its progress, cost and time left as they change, and its end."""
    run = stack.runs.get(run_id, owner)
    if run.state.is_final and run_end(run).digest == since.shown:
        return Response(status_code=204)
    return EventStream(request, stack.events.runs, run.id, since)
