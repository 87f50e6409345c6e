"""The handler of jobs for vectors: the inputs that have no vector are embedded, and kept."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from promptstack.config.errors import PromptStackError
from promptstack.repositories.content.query_vectors import KeptVector
from promptstack.repositories.jobs.records import Claim
from promptstack.services.accounting.upper_bounds import most_of_texts
from promptstack.services.errors import EmbeddedElsewhere
from promptstack.services.execution.bytes_in_flight import BytesInFlight
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.deaths import LONGEST_SEARCH, calls_of, check_deaths
from promptstack.services.execution.failure_policy import bisect, is_bisected, is_retried
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.provider_calls import ProviderCall, ProviderCalls
from promptstack.services.limiter.errors import RequestTooLarge
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.embedding_requests import EmbeddingRequest
from promptstack.services.llm.errors import OddVector, ProviderError
from promptstack.services.llm.packing import BYTES_A_NUMBER, EmbeddingInput, bytes_of, pack
from promptstack.services.llm.pool import ProviderPool
from promptstack.services.vectors.contents import Wanted, shares, wanted_of
from promptstack.services.vectors.store import Open, VectorStore, kept_vector

SHARED_POLL_SECONDS = 0.05
SHARED_RETRY_SECONDS = 1.0
AT_ONCE_BYTES = 32_000
"""Of texts that are read, packed and counted on the event loop: it takes no millisecond."""

T = TypeVar("T")


@dataclass
class _Work:
    """A job's work, and what it has come to."""

    store: VectorStore
    wanted: Sequence[Wanted]
    asked_size: int | None
    """Of the vectors; None is the model's own."""
    is_large: bool
    errors: dict[bytes, PromptStackError] = field(default_factory=dict)
    embedded: int = 0
    calls: int = 0
    tokens: int = 0
    dimensions: int | None = None

    @property
    def open(self) -> list[Wanted]:
        """What has not failed."""
        return [one for one in self.wanted if one.hash not in self.errors]

    def add(self, call: Call, answer: EmbeddingResponse, weights: Sequence[int]) -> None:
        """Count a call."""
        self.calls += 1
        self.tokens += answer.input_tokens or sum(weights)
        self.dimensions = answer.vectors.shape[1]
        self.embedded += len(call.contents) - len(answer.others)
        for place, vector in answer.others.items():
            self.errors[call.contents[place].hash] = OddVector(
                f"The provider answered a vector of {len(vector)} numbers among others of "
                f"{self.dimensions}; it was not kept. Try it again."
            )

    def result(self, *, shows_cost: bool) -> dict[str, Any]:
        """The job's result: numbers, and errors without content."""
        result: dict[str, Any] = {
            "inputs": sum(len(one.positions) for one in self.wanted),
            "dimensions": self.dimensions,
        }
        if shows_cost:
            result |= {
                "embedded": self.embedded,
                "reused": len(self.wanted) - self.embedded - len(self.errors),
                "provider_calls": self.calls,
                "tokens_used": self.tokens,
            }
        failed = [
            {"input": place, "error_code": error.code, "error": str(error)}
            for one in self.wanted
            for error in [self.errors.get(one.hash)]
            if error is not None
            for place in one.positions
        ]
        return {**result, "failed": failed} if failed else result


class InputEmbedder:
    """Makes vectors for who waits for them."""

    def __init__(
        self,
        calls: ProviderCalls,
        providers: ProviderPool,
        memory: BytesInFlight,
        *,
        shares_vectors: bool = False,
        patience_seconds: float = 3.0,
    ) -> None:
        """With `shares_vectors`, jobs use vectors that other users have paid for.

        A job waits in the worker for inputs that another job embeds, up to `patience_seconds`; then
        it waits in the queue.
        """
        self._calls = calls
        self._providers = providers
        self._memory = memory
        self._shares_vectors = shares_vectors
        self._patience_seconds = patience_seconds

    async def embed(self, job: JobContext) -> None:
        """Embed the job's inputs, and store the job's result.

        An input that is refused fails alone: the result has its error. Where no input gets a
        vector, the first error is the job's.
        """
        claim = job.claim
        check_deaths(claim, LONGEST_SEARCH)
        request = EmbeddingRequest.stored(claim.request)
        owner = None if self._shares_vectors else claim.user_id
        is_large = sum(map(bytes_of, request.inputs)) > AT_ONCE_BYTES
        read = partial(wanted_of, request.inputs, owner, request.dimensions)
        has_texts = any(isinstance(one, str) for one in request.inputs)
        store = VectorStore(claim, reads_others=has_texts and request.dimensions is None)
        work = _Work(store, await _computed(read, is_large), request.dimensions, is_large)
        idle_since: float | None = None
        while True:
            found = await job.ledger.write_async(partial(store.find_open, wanted=work.open))
            if await self._embed_reserved(job, work, found):
                return
            if not found.is_shared:
                break
            # Wait only when nothing is left to pay for here: two jobs could wait for each other.
            idle_since = idle_since or time.monotonic()
            if time.monotonic() - idle_since > self._patience_seconds:
                raise EmbeddedElsewhere(
                    "Another job embeds the same inputs; this one waits for its vectors.",
                    retry_after=SHARED_RETRY_SECONDS,
                )
            await job.handle.rest(SHARED_POLL_SECONDS)
        if not work.open:
            raise next(iter(work.errors.values()))
        result = self._result(claim, work)
        await job.ledger.write_async(lambda unit: unit.steps.succeed(claim, result))

    async def _embed_reserved(self, job: JobContext, work: _Work, found: Open) -> bool:
        """Embed what this job has reserved, call by call; whether that has ended the job."""
        if not found.reserved:
            return False
        claim = job.claim
        service = await self._providers.get_async(claim.provider)
        pack_all = partial(_calls_for, claim, service, found.reserved, work.asked_size)
        queue = deque(await _computed(pack_all, work.is_large))
        while queue:
            # A refused call may have told how many texts the provider takes.
            call, *rest = queue.popleft().split(service.limits_of(claim.model).items)
            queue.extendleft(reversed(rest))
            ends = not queue and not found.is_shared
            try:
                await self._make(job, work, call, ends=ends)
            except (ProviderError, RequestTooLarge) as error:
                if is_retried(call, error, claim.max_retries):
                    raise
                if is_bisected(call, error):
                    queue.extendleft(reversed(bisect(call, error)))
                elif len(call.contents) == 1 and error.reach.is_bisected:
                    work.errors[call.contents[0].hash] = error
                else:
                    raise
                continue
            job.claim = claim = replace(claim, deaths=0)  # as in the ledger: it made progress
            if ends:
                return True
        return False

    async def _make(self, job: JobContext, work: _Work, call: Call, *, ends: bool) -> None:
        """Make one call and keep its vectors; where it `ends` the job, that has ended then."""
        claim, inputs = job.claim, [_input_of(content) for content in call.contents]
        service = await self._providers.get_async(claim.provider)
        size = sum(map(bytes_of, inputs)) + BYTES_A_NUMBER * len(inputs) * (
            work.asked_size or service.dimensions_of(claim.model)
        )
        # A provider's own tokenizer takes up to a fifth of a second.
        takes_long = work.is_large or not service.is_limited
        weights = await _computed(partial(service.estimate_inputs, inputs), takes_long)
        async with self._memory.hold(size, job.handle.run):
            outcome = await self._calls.make(
                job,
                ProviderCall(
                    provider=claim.provider,
                    model=claim.model,
                    ask=lambda llm: llm.embed(inputs, claim.model, claim.user_id, work.asked_size),
                    need=lambda _: Need(sum(weights), 0, claim.is_bulk, claim.user_id, claim.tier),
                    most=lambda: most_of_texts(inputs),
                    items=len(inputs),
                    is_suspect=call.waste_budget is not None,
                ),
            )
            work.add(call, outcome.answer, weights)
            keep = partial(_kept, call, outcome.answer, weights)
            vectors = await _computed(keep, work.is_large)
            progress = (work.embedded + len(work.errors), len(work.wanted))
            result = self._result(claim, work) if ends else None
            await self._calls.store(
                outcome, lambda unit: work.store.store(unit, call, vectors, progress, result)
            )
        if not ends:
            job.show(*progress)

    def _result(self, claim: Claim, work: _Work) -> dict[str, Any]:
        # If another user may have paid, no number may show it.
        return work.result(shows_cost=not self._shares_vectors or claim.user_id is None)


def _calls_for(
    claim: Claim, service: LLMService, wanted: Sequence[Wanted], dimensions: int | None
) -> list[Call]:
    """Pack what is wanted into calls. Raises `WorkersLost`, as `calls_of` does."""
    size = dimensions or service.dimensions_of(claim.model)
    limits = service.limits_of(claim.model).in_memory(size)
    batches = [
        [_content(one) for one in batch] for batch in pack(wanted, limits, service.estimate_tokens)
    ]
    return calls_of(claim, batches)


def _content(one: Wanted) -> Content:
    if isinstance(one.text, str):
        return Content(one.hash, one.positions, one.text)
    return Content(one.hash, one.positions, "", token_ids=one.text)


def _input_of(content: Content) -> EmbeddingInput:
    return content.text if content.token_ids is None else content.token_ids


def _kept(call: Call, answer: EmbeddingResponse, weights: Sequence[int]) -> dict[bytes, KeptVector]:
    """The vectors of a call as they are kept, but those of another size than the others."""
    return {
        content.hash: kept_vector(answer.vectors[place], tokens)
        for place, (content, tokens) in enumerate(
            zip(call.contents, shares(answer.input_tokens, weights), strict=True)
        )
        if place not in answer.others
    }


async def _computed(work: Callable[[], T], is_large: bool) -> T:
    """Compute something: on the event loop, or in a thread where that would hold up others."""
    return await asyncio.to_thread(work) if is_large else work()
