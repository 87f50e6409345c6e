"""`wait`: a request that is answered when what it is about has ended, or else after a while.

Who waits holds no thread and no connection behind: they watch, as those do who read events.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Annotated, TypeVar
from uuid import UUID

from anyio import to_thread
from fastapi import Depends, Query, Request, Response
from starlette.types import Receive, Scope, Send

from promptstack.api.http.accepted import asked_at
from promptstack.api.http.auth import CurrentCaller
from promptstack.repositories.errors import TransientLedgerError
from promptstack.services.events.errors import TooManyWatchers, WatchersFull
from promptstack.services.events.places import Look
from promptstack.services.events.topics import Topic, job_end, run_end
from promptstack.services.jobs.views import JobView
from promptstack.services.runs.views import RunView
from promptstack.tasks.composition import PromptStack

MOST_SECONDS = 60
ENDED_IN_TIME = "It has ended in time (`wait`)."
JSON = "application/json"
View = TypeVar("View", JobView, RunView)
Answer = Callable[[Look], Response]

Seconds = Annotated[
    float | None,
    Query(
        ge=0,
        le=MOST_SECONDS,
        allow_inf_nan=False,
        description="Answer when it has ended, or after so many seconds. At once where too many "
        "wait already.",
    ),
]


class AnswerInTime(Response):
    """Answers when a job or run has ended, or after a time with how it stands then.

    It waits as it is sent, on the server's own event loop. The handler of a large body has a
    thread, for which others wait.
    """

    def __init__(
        self,
        wait: Callable[[], Awaitable[Look | None]],
        read: Callable[[], Look],
        answer: Callable[[Look], Response],
    ) -> None:
        """Take how to `wait` for the end, to `read` in a thread what goes on, and to `answer`."""
        super().__init__(status_code=202, media_type=JSON)
        self._wait = wait
        self._read = read
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer. A client that goes away ends the wait and nothing else."""
        waiting = asyncio.ensure_future(self._wait())
        leaving = asyncio.create_task(gone(receive))
        await asyncio.wait({waiting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        is_gone = leaving.done()
        for task in (waiting, leaving):
            task.cancel()
        await asyncio.gather(waiting, leaving, return_exceptions=True)
        if not is_gone:
            end = waiting.result()
            look = await to_thread.run_sync(self._read) if end is None else end
            await self._answer(look)(scope, receive, send)


def as_it_is(look: Look) -> Response:
    """Answer with how it stands."""
    return Response(look.encoded, media_type=JSON)


def as_accepted(headers: Mapping[str, str], look: Look, *, status_of_end: int = 200) -> Response:
    """Answer with what has ended, or 202 with what goes on; and with where to ask for it."""
    status = status_of_end if look.is_final else 202
    return Response(look.encoded, status, headers_of(headers, look), media_type=JSON)


def headers_of(headers: Mapping[str, str], look: Look) -> dict[str, str]:
    """Those of `asked_at` that hold: nobody has to ask again for what has ended."""
    return {
        name: value
        for name, value in headers.items()
        if not (look.is_final and name == "Retry-After")
    }


class Waiting:
    """How long a request waits, and how it is answered then."""

    def __init__(self, request: Request, seconds: float) -> None:
        self._stack: PromptStack = request.app.state.stack
        self._user_id: UUID = request.state.caller.user_id
        self._seconds = seconds

    def for_job(self, job: JobView, answer: Answer = as_it_is) -> Response:
        """The answer to a request for a job."""
        read = partial(self._stack.jobs.get, job.id)
        return self._in_time(job, self._stack.events.jobs, job_end, read, answer)

    def for_run(self, run: RunView, answer: Answer = as_it_is) -> Response:
        """The answer to a request for a run."""
        read = partial(self._stack.runs.get, run.id)
        return self._in_time(run, self._stack.events.runs, run_end, read, answer)

    def for_new_job(self, job: JobView) -> Response:
        """The answer to a request that has made a job: 200 with its end, or 202."""
        return self.for_job(job, self._accepted(f"/jobs/{job.id}"))

    def for_new_run(self, run: RunView) -> Response:
        """The answer to a request that has made a run: 200 with its end, or 202."""
        return self.for_run(run, self._accepted(f"/runs/{run.id}"))

    def _accepted(self, path: str) -> Answer:
        headers = asked_at(self._stack, path)
        # Who does not wait is told that it was accepted, also where it has ended already.
        return partial(as_accepted, headers, status_of_end=200 if self._seconds else 202)

    def _in_time(
        self,
        view: View,
        topic: Topic,
        look: Callable[[View], Look],
        read: Callable[[], View],
        answer: Answer,
    ) -> Response:
        known = look(view)
        if known.is_final or not self._seconds:
            return answer(known)

        def read_again() -> Look:
            try:
                return look(read())
            except TransientLedgerError:
                return known  # it was accepted, and can be asked for later

        return AnswerInTime(partial(self._end, topic, view.id), read_again, answer)

    async def _end(self, topic: Topic, one: UUID) -> Look | None:
        """How it has ended; None where it does not in time, or too many wait."""
        with suppress(TimeoutError, TooManyWatchers, WatchersFull):
            async with asyncio.timeout(self._seconds):
                with self._stack.events.watch(topic, one, self._user_id, only_end=True) as watcher:
                    async for _ in watcher:
                        pass
                    return watcher.end
        return None


async def get_waiting(request: Request, caller: CurrentCaller, wait: Seconds = None) -> Waiting:
    """Return how long the sender waits."""
    return Waiting(request, wait or 0.0)


Wait = Annotated[Waiting, Depends(get_waiting)]


async def gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
