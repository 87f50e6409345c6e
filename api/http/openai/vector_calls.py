"""Calls for vectors that clients wait for: small ones that come at the same time share a job."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from uuid import UUID

from anyio import to_thread
from fastapi import Request, Response

from promptstack.api.http.direct import FINAL, DirectCall
from promptstack.api.http.problems import respond
from promptstack.repositories.models import JobState
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.packing import EmbeddingInput
from promptstack.services.openai.errors import failure_of
from promptstack.services.vectors.packing import Packing
from promptstack.services.vectors.service import InputVector
from promptstack.tasks.composition import PromptStack


@dataclass(frozen=True)
class Terms:
    """What calls have in common that may share a job."""

    provider: str
    model: str
    dimensions: int | None
    user_id: UUID
    api_key_id: UUID | None
    request: Request = field(compare=False)
    """Of the first of them."""
    is_bulk: bool = False
    idempotency_key: str | None = None
    tags: tuple[str, ...] = ()

    @property
    def is_kept(self) -> bool:
        """Whether its job goes on without its client, who will ask for it again."""
        return self.idempotency_key is not None

    @property
    def is_alone(self) -> bool:
        """Whether it has a job of its own."""
        return self.is_bulk or self.is_kept or bool(self.tags)


@dataclass(frozen=True)
class Made:
    """What a job has come to: an answer for each input, or one problem for all."""

    headers: dict[str, str]
    vectors: Sequence[InputVector | Response] = ()
    """Of an input that was refused, the problem."""
    problem: Response | None = None


class VectorCalls:
    """Answers calls for vectors, on one event loop."""

    def __init__(self, stack: PromptStack) -> None:
        self._stack = stack
        self._packing: Packing[Terms, Made] = Packing(
            self._make, gather_seconds=stack.settings.vectors_gather_seconds
        )

    async def ask(
        self, terms: Terms, inputs: Sequence[EmbeddingInput]
    ) -> tuple[Made, Sequence[InputVector | Response]]:
        """Return what became of the job, and of these inputs.

        Who stops waiting cancels the job, unless others wait for it too. Raises what enqueueing
        raises.
        """
        made, first = await self._packing.ask(terms, inputs, alone=terms.is_alone)
        return made, made.vectors[first : first + len(inputs)]

    async def _make(self, terms: Terms, inputs: Sequence[EmbeddingInput]) -> Made:
        call = self._call(terms, await self._enqueue(terms, inputs))
        try:
            ended = await call.end()
            if ended is None:
                return Made(call.headers, problem=await call.stopped())
            if ended.state is not JobState.SUCCEEDED:
                return Made(call.headers, problem=await call.refusal(ended))
            read = partial(self._read, terms, inputs, ended, call.headers)
            return Made(call.headers, await to_thread.run_sync(read))
        except TimeoutError:
            return Made(call.headers, problem=await call.unanswered())
        except BaseException:  # nobody waits any more, or too many do
            await call.cancel()
            raise

    async def _enqueue(self, terms: Terms, inputs: Sequence[EmbeddingInput]) -> JobView:
        """Enqueue the job. Where nobody waits for it any more, it is cancelled at once."""
        enqueue = partial(
            self._stack.jobs.enqueue_vectors,
            inputs,
            provider=terms.provider,
            model=terms.model,
            dimensions=terms.dimensions,
            user_id=terms.user_id,
            api_key_id=terms.api_key_id,
            idempotency_key=terms.idempotency_key,
            bulk=terms.is_bulk,
            tags=terms.tags,
            expires_in=None if terms.is_kept else self._stack.settings.direct_wait_seconds,
        )
        adding = asyncio.ensure_future(to_thread.run_sync(enqueue))
        try:
            return await asyncio.shield(adding)
        except asyncio.CancelledError:
            await self._call(terms, await adding).cancel()
            raise

    @staticmethod
    def _call(terms: Terms, job: JobView) -> DirectCall:
        return DirectCall(terms.request, job, is_kept=terms.is_kept, field="/input")

    def _read(
        self, terms: Terms, inputs: Sequence[EmbeddingInput], job: JobView, headers: dict[str, str]
    ) -> list[InputVector | Response]:
        failed = {one["input"]: one for one in (job.result or {}).get("failed", ())}
        wanted = [one for place, one in enumerate(inputs) if place not in failed]
        found = iter(
            self._stack.vectors.read(
                wanted, terms.provider, terms.model, terms.user_id, terms.dimensions
            )
        )
        return [
            _refusal(failed[place], headers) if place in failed else next(found)
            for place in range(len(inputs))
        ]


def _refusal(failed: dict[str, str], headers: dict[str, str]) -> Response:
    failure = failure_of(failed["error_code"])
    return respond(
        failure.status, failed["error"], code=failure.code, field="/input", headers=headers | FINAL
    )
