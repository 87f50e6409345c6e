"""Requests that wait for the end of a job: any number of them ask one question a moment."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from anyio import CapacityLimiter, to_thread
from fastapi import Response
from starlette.types import Receive, Scope, Send

from promptstack.api.http.problems import respond
from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.models import JobState
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.views import JobView

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
MOST_OF_ONE_USER = 0.25
"""How many of all waiters may be one user's."""
ReadProgress = Callable[[Sequence[UUID]], Mapping[UUID, Progress]]


class JobWaiters:
    """Waits for jobs to end, on the event loop: who waits holds no thread and no connection.

    One thread asks for all who wait, so that a Redis or a ledger that hangs holds up nobody else.
    """

    def __init__(self, read: ReadProgress, max_waiters: int) -> None:
        self._read = read
        self._max_waiters = max_waiters
        self._of_users: Counter[UUID] = Counter()
        self._waiting: dict[UUID, set[asyncio.Event]] = {}
        self._thread = CapacityLimiter(1)
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job_id: UUID, user_id: UUID, seconds: float) -> None:
        """Return when a job has ended or the time is over; at once where too many wait already."""
        most = max(1, int(self._max_waiters * MOST_OF_ONE_USER))
        if self._of_users.total() >= self._max_waiters or self._of_users[user_id] >= most:
            return
        ended = asyncio.Event()
        self._of_users[user_id] += 1
        self._waiting.setdefault(job_id, set()).add(ended)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(seconds):
                await ended.wait()
        except TimeoutError:
            pass
        finally:
            self._of_users -= Counter([user_id])
            self._waiting[job_id].discard(ended)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def _look(self) -> None:
        """Ask where the jobs stand, until nobody waits."""
        while self._waiting:
            ids = list(self._waiting)
            try:
                found = await to_thread.run_sync(self._read, ids, limiter=self._thread)
            except PromptStackError as error:
                logger.warning("jobs can't be waited for now: %s", error.code)
                found = {}
            for job_id, progress in found.items():
                if progress.state.is_final:
                    for ended in self._waiting.get(job_id, ()):
                        ended.set()
            await asyncio.sleep(LOOK_SECONDS)


class AnswerInTime(Response):
    """Answers when a job has ended: 200, or 502 where it has failed. Else 202, and it goes on.

    It waits as it is sent, on the server's own event loop. The handler of a large body has a
    thread, for which others wait.
    """

    def __init__(
        self,
        job: JobView,
        read: Callable[[UUID], JobView],
        wait: Callable[[], Coroutine[Any, Any, None]],
        headers: Mapping[str, str],
    ) -> None:
        """Take how to `read` the job again, what to `wait` for before, and the headers of a 202."""
        super().__init__(status_code=202, media_type="application/json")
        self._job = job
        self._read = read
        self._wait = wait
        self._when_it_goes_on = dict(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer. A client that goes away ends the wait and nothing else."""
        job = self._job
        if not job.state.is_final:
            waiting = asyncio.create_task(self._wait())
            gone = asyncio.create_task(_gone(receive))
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            is_gone = gone.done()
            for task in (waiting, gone):
                task.cancel()
            await asyncio.gather(waiting, gone, return_exceptions=True)
            if is_gone:
                return
            with suppress(TransientLedgerError):  # it is accepted, and its answer can be had later
                job = await to_thread.run_sync(self._read, job.id)
        await self._answer(job)(scope, receive, send)

    def _answer(self, job: JobView) -> Response:
        headers = (
            {"Location": self._when_it_goes_on["Location"]}
            if job.state.is_final
            else self._when_it_goes_on
        )
        if job.state.is_final and job.state is not JobState.SUCCEEDED:
            detail = f"The job is {job.state}: {job.error or 'it was asked to end.'}"
            code = job.error_code or f"JOB_{job.state.upper()}"
            return respond(502, detail, code=code, headers=headers)
        status = 200 if job.state.is_final else 202
        content = job.model_dump_json().encode()
        return Response(content, status, headers, media_type="application/json")


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
