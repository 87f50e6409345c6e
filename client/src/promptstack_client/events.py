"""Reads events (SSE), and goes on after the last one where a connection broke off."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx2
import pydantic_core
from pydantic import ValidationError

from promptstack_client.calls import Asked, Call, Route
from promptstack_client.errors import UnexpectedAnswer
from promptstack_client.feeds import Feed, Pieces
from promptstack_client.models.base import Id
from promptstack_client.models.events import JOB_EVENTS, Event, MoreText, Piece, Restart
from promptstack_client.models.jobs import Job

SILENCE_SECONDS = 45.0
"""The server says something every 15 seconds; after this long nobody is there any more."""
JOB_ROUTE: Route[Any] = Route("GET", "/jobs/{job_id}/events", None)
RUN_ROUTE: Route[Any] = Route("GET", "/runs/{run_id}/events", None)


class EventFeed(Feed[Any]):
    """The events of a job or run, until its end."""

    def __init__(
        self,
        route: Route[Any],
        path: Mapping[str, Id],
        kinds: Mapping[str, Any],
        since: str | None = None,
    ) -> None:
        self._route = route
        self._path = path
        self._kinds = kinds
        self._last = since

    def call(self) -> Call[Any]:
        """Ask for what comes after the last event."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if self._last:
            headers["Last-Event-ID"] = self._last
        asked = Asked(self._path, headers=headers, timeout=SILENCE_SECONDS)
        return Call.of(self._route, asked)

    def pieces(self, response: httpx2.Response) -> Pieces:
        """One event after the other; there are none where the end was read before."""
        self.ended = response.status_code == httpx2.codes.NO_CONTENT
        return NOTHING if self.ended else httpx2.EventSource(response, max_event_size=None)

    def is_progress(self, piece: httpx2.ServerSentEvent) -> bool:
        """Whether it tells anything: the server also says how long to pause between connections."""
        return bool(piece.data)

    def take(self, piece: httpx2.ServerSentEvent) -> Iterator[Any]:
        """Read an event."""
        if piece.id:
            self._last = piece.id
        if piece.data:
            self.ended = piece.event == "end"
            yield self.read(piece)

    def read(self, piece: httpx2.ServerSentEvent) -> Any:
        """An event with its data as a model, or as it came where this client knows none."""
        try:
            data = pydantic_core.from_json(piece.data)
            if kind := self._kinds.get(piece.event):
                data = kind.model_validate(data)
        except (ValueError, ValidationError) as error:
            raise UnexpectedAnswer(f"An event {piece.event!r} can't be read: {error}") from error
        return Event(id=piece.id, name=piece.event, data=data)


class TextFeed(EventFeed):
    """The text of a job as it is produced. A first call may make the job."""

    def __init__(self, job: Id | None = None, first: Call[Job] | None = None) -> None:
        super().__init__(JOB_ROUTE, {} if job is None else {"job_id": job}, JOB_EVENTS)
        self.first = first
        self._parts: list[str] = []

    def begin(self, answer: Job) -> None:
        """Read the text of the job that was made."""
        self._path = {"job_id": answer.id}

    def take(self, piece: httpx2.ServerSentEvent) -> Iterator[Piece]:
        """Read what an event says of the text. Raises `Unsuccessful` at an end without one."""
        for event in super().take(piece):
            data = event.data
            if isinstance(data, MoreText):
                self._parts.append(data.text)
                yield Piece(kind="text", text=data.text)
            elif isinstance(data, Restart):
                self._parts.clear()
                yield Piece(kind="restart", reason=data.reason)
            elif isinstance(data, Job):
                yield from self._end(data)

    def _end(self, job: Job) -> Iterator[Piece]:
        """The end, and before it what was not shown: the stored text is the one that holds."""
        whole, shown = job.text, "".join(self._parts)
        if not whole.startswith(shown):
            yield Piece(kind="restart", reason="another text was stored")
            shown = ""
        if rest := whole[len(shown) :]:
            yield Piece(kind="text", text=rest)
        yield Piece(kind="end", job=job)


class _Nothing:
    def __iter__(self) -> Iterator[Any]:
        return iter(())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for piece in self:
            yield piece


NOTHING = _Nothing()
