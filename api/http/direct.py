"""Direct calls: a client waits for the answer of one job, as it would for its provider.

Who waits holds no thread. A client that goes away cancels its job, unless it asked to keep it:
nobody would read the answer, which is paid for.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import orjson
from anyio import CancelScope, to_thread
from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from promptstack.api.http.problems import respond
from promptstack.api.http.waiting import gone
from promptstack.config.errors import PromptStackError
from promptstack.repositories.models import JobState
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.events.hub import EventHub
from promptstack.services.jobs.views import JobView, WaitReason
from promptstack.services.openai.errors import failure_of
from promptstack.tasks.composition import PromptStack

logger = logging.getLogger(__name__)

JOB_ID_HEADER = "x-promptstack-job-id"
ASK_AGAIN_SECONDS = 5
FINAL = {"x-should-retry": "false"}
"""Tells OpenAI's clients that the same request would fail again."""
OVER_SOON = (429, 503)
"""Statuses of what a provider refuses for now, which costs nothing: asked later, it may answer."""
MOST_WORDS = 1_000
"""Characters of what a provider said that an error quotes."""


class DirectCall:
    """A job whose answer a client waits for."""

    def __init__(
        self, request: Request, job: JobView, *, is_kept: bool, field: str | None = None
    ) -> None:
        """With `is_kept`, the job goes on when its client has gone or has waited too long.

        `field` is the one at fault where the provider refuses the request, if it can be no other.
        """
        self._field = field
        self.job = job
        self.headers = {JOB_ID_HEADER: str(job.id)}
        self._is_kept = is_kept
        # Sent again, these find this job; any other request would make, and pay for, one more.
        self._is_same_again = request.method == "GET" or "Idempotency-Key" in request.headers
        self._stack: PromptStack = request.app.state.stack
        self.hub: EventHub = self._stack.events
        self.user_id: UUID = request.state.caller.user_id
        self.seconds = self._stack.settings.direct_wait_seconds

    async def end(self) -> JobView | None:
        """Wait for the job's end; None if it is deleted or this server stops first.

        Raises `TimeoutError`.
        """
        if self.job.state.is_final:
            return self.job
        async with asyncio.timeout(self.seconds):
            with self.hub.watch(self.hub.jobs, self.job.id, self.user_id, only_end=True) as watcher:
                async for _ in watcher:
                    pass
        return None if watcher.end is None else JobView.model_validate_json(watcher.end.data)

    async def cancel(self) -> None:
        """Cancel the job, unless it is kept: nobody waits for it any more."""
        if not self._is_kept:
            with CancelScope(shield=True):
                await to_thread.run_sync(self._cancel)

    async def refusal(self, ended: JobView) -> Response:
        """The problem of a job that has ended without an answer."""
        detail = await to_thread.run_sync(self._words_of_provider, ended)
        return self._refusal(ended, detail)

    async def unanswered(self) -> Response:
        """The problem of a job that has not ended in time."""
        waits = await to_thread.run_sync(self._waits)
        await self.cancel()
        is_limited = waits is not None and waits.reason is WaitReason.LIMIT
        said = f"There was no answer within {self.seconds:g} s (DIRECT_WAIT_SECONDS)."
        if waits is not None:
            said += f" The job waited: {waits.detail}"
        if self._is_kept:
            said += f" Job {self.job.id} goes on: look for its answer later."
            return respond(504, said, code="timeout", headers=self.headers | FINAL)
        said += f" Job {self.job.id} is cancelled."
        after = ASK_AGAIN_SECONDS
        if waits is not None and waits.until is not None:
            after = max(after, math.ceil((waits.until - datetime.now(UTC)).total_seconds()))
        headers = self.headers | {"Retry-After": str(after)}
        status, code = (429, "rate_limit_exceeded") if is_limited else (504, "timeout")
        return respond(status, said, code=code, headers=headers)

    async def stopped(self) -> Response:
        """The problem of a job that nobody watches any more: deleted, or this server stops."""
        if await to_thread.run_sync(self._is_deleted):
            said = f"Job {self.job.id} was deleted."
            return respond(404, said, code="job_deleted", headers=self.headers | FINAL)
        await self.cancel()
        if self._is_kept and not self._is_same_again:
            said = f"This server stops. Job {self.job.id} goes on: look for its answer later."
            return respond(503, said, code="server_stops", headers=self.headers | FINAL)
        said = "This server stops; ask again."
        headers = self.headers | {"Retry-After": "1"}
        return respond(503, said, code="server_stops", headers=headers)

    def _refusal(self, ended: JobView, detail: str | None) -> Response:
        if ended.state is JobState.CANCELLED:
            said = f"Job {ended.id} was cancelled."
            return respond(409, said, code="job_cancelled", headers=self.headers | FINAL)
        failure = failure_of("EXPIRED" if ended.state is JobState.EXPIRED else ended.error_code)
        said = ended.error or f"Job {ended.id} is {ended.state}."
        if detail:
            said = f"{said} It said: {detail[:MOST_WORDS]}"
        is_over_soon = failure.status in OVER_SOON
        headers = self.headers | (
            {"Retry-After": str(ASK_AGAIN_SECONDS)} if is_over_soon else FINAL
        )
        field = self._field if failure.status == 400 else None
        return respond(failure.status, said, code=failure.code, field=field, headers=headers)

    def _cancel(self) -> None:
        try:
            self._stack.jobs.cancel(self.job.id)
        except (WrongState, NotFound):
            pass  # it has ended
        except PromptStackError as error:
            logger.warning("job %s goes on without a client: %s", self.job.id, error.code)

    def _is_deleted(self) -> bool:
        try:
            self._stack.jobs.get(self.job.id)
        except NotFound:
            return True
        except PromptStackError:
            pass  # nobody knows
        return False

    def _waits(self) -> Any:
        with suppress(PromptStackError):
            return self._stack.jobs.get(self.job.id).waits
        return None

    def _words_of_provider(self, ended: JobView) -> str | None:
        """What the provider said of the call with which the job has failed."""
        if not failure_of(ended.error_code).is_of_provider:
            return None
        with suppress(PromptStackError):
            attempts = self._stack.jobs.get_attempts(ended.id)
            return next((one.detail for one in reversed(attempts) if one.detail), None)
        return None


class DirectAnswer(Response):
    """Answers with what is made of the job's result, or with why there is none."""

    def __init__(
        self, call: DirectCall, make: Callable[[JobView], Mapping[str, Any] | bytes]
    ) -> None:
        """Take how to `make` the body; bytes are JSON already."""
        super().__init__(headers=call.headers)
        self._call = call
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, then answer, unless the client has gone."""
        answer = await or_gone(self._answer(), receive)
        if answer is None:
            await self._call.cancel()
        else:
            await answer(scope, receive, send)

    async def _answer(self) -> Response:
        call = self._call
        try:
            ended = await call.end()
        except TimeoutError:
            return await call.unanswered()
        except PromptStackError:  # too many wait
            await call.cancel()
            raise
        if ended is None:
            return await call.stopped()
        if ended.state is not JobState.SUCCEEDED:
            return await call.refusal(ended)
        made = self._make(ended)
        body = made if isinstance(made, bytes) else orjson.dumps(made)
        return Response(body, headers=call.headers, media_type="application/json")


async def or_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """What `work` returns; None where the client goes away before, which cancels it."""
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
