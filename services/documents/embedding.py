"""The handler of embedding jobs: cut the document, and embed the chunks that have no vector."""

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from promptstack.config.errors import PromptStackError
from promptstack.repositories.content.documents import Passage
from promptstack.repositories.jobs.records import Claim
from promptstack.services.accounting.upper_bounds import most_of_texts
from promptstack.services.documents.chunk_sizes import Cutter, Cutting
from promptstack.services.documents.store import Cut, DocumentStore, OpenChunks
from promptstack.services.errors import EmbeddedElsewhere
from promptstack.services.execution.bytes_in_flight import BytesInFlight
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.deaths import LONGEST_SEARCH, calls_of, check_deaths
from promptstack.services.execution.failure_policy import bisect, is_bisected, is_retried
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.provider_calls import ProviderCall, ProviderCalls
from promptstack.services.limiter.errors import RequestTooLarge
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import ContextTooLong, ProviderError
from promptstack.services.llm.packing import bytes_in_hand, pack
from promptstack.services.llm.pool import ProviderPool

SHARED_POLL_SECONDS = 0.25
SHARED_RETRY_SECONDS = 1.0


class ChunkTooLong(Exception):
    """A chunk alone is longer than its model takes. `unpaid` are the calls that were not made."""

    def __init__(self, text: str, unpaid: Sequence[Call], error: ContextTooLong) -> None:
        super().__init__(str(error))
        self.text = text
        self.unpaid = {hash_ for call in unpaid for hash_ in call.hashes}
        self.error = error


class DocumentEmbedder:
    """Embeds one document a job, and of it only the chunks that have no vector."""

    def __init__(
        self,
        calls: ProviderCalls,
        providers: ProviderPool,
        cutter: Cutter,
        memory: BytesInFlight,
        *,
        shares_vectors: bool = False,
        patience_seconds: float = 3.0,
    ) -> None:
        """With `shares_vectors`, documents use vectors that other users have paid for.

        A job waits in the worker for chunks that another job embeds, up to `patience_seconds`; then
        it waits in the queue.
        """
        self._calls = calls
        self._providers = providers
        self._cutter = cutter
        self._memory = memory
        self._shares_vectors = shares_vectors
        self._patience_seconds = patience_seconds

    async def embed(self, job: JobContext) -> None:
        """Embed the job's document, and store the job's result."""
        # Before reading the content, as it may be what kills workers.
        check_deaths(job.claim, LONGEST_SEARCH)
        store = DocumentStore(job.claim, shares_vectors=self._shares_vectors)
        await self._providers.get_async(job.claim.provider)
        cutting = self._cutter.cutting_for(job.claim)
        idle_since: float | None = None
        while True:
            chunks = await self._find_open(job, store, cutting)
            job.show(chunks.done, chunks.total)
            try:
                await self._embed_reserved(job, store, chunks)
            except ChunkTooLong as found:
                cutting = await self._cut_smaller(job, store, cutting, chunks, found)
                continue
            succeed = partial(store.succeed, total=chunks.total)
            if not chunks.is_shared and await job.ledger.write_async(succeed):
                return
            # Wait only when nothing is left to pay for here: two jobs could wait for each other.
            idle_since = idle_since or time.monotonic()
            if time.monotonic() - idle_since > self._patience_seconds:
                raise EmbeddedElsewhere(
                    "Another job embeds the same passages; this one waits for its vectors.",
                    retry_after=SHARED_RETRY_SECONDS,
                )
            await job.handle.rest(SHARED_POLL_SECONDS)

    async def _find_open(
        self, job: JobContext, store: DocumentStore, cutting: Cutting
    ) -> OpenChunks:
        """Reserve the chunks that have no vector. A new text is cut into chunks first.

        Cutting takes up to seconds, so it happens between two transactions, in a thread, and again
        if the text changes meanwhile.
        """
        cut: Cut | None = None
        while True:
            found = await job.ledger.write_async(partial(store.find_open, cutting=cutting, cut=cut))
            if isinstance(found, OpenChunks):
                return found
            check_deaths(job.claim, 0)  # there are no calls yet that could be halved
            pieces = await asyncio.to_thread(cutting.fits.cut, found.text, found.source)
            cut = Cut(found.content_hash, pieces)

    async def _embed_reserved(
        self, job: JobContext, store: DocumentStore, chunks: OpenChunks
    ) -> None:
        """Embed the chunks that this job has reserved, call by call."""
        service = await self._providers.get_async(job.claim.provider)
        queue = deque(await asyncio.to_thread(_calls_for, job.claim, service, chunks.reserved))
        done, total = chunks.done, chunks.total
        while queue:
            # A refused call may have told how many texts the provider takes.
            call, *rest = queue.popleft().split(service.limits_of(job.claim.model).items)
            queue.extendleft(reversed(rest))
            try:
                errors = await self._make(job, store, call, done, total)
            except (ProviderError, RequestTooLarge) as error:
                if isinstance(error, ContextTooLong) and len(call.contents) == 1:
                    raise ChunkTooLong(call.contents[0].text, [call, *queue], error) from error
                if is_retried(call, error, job.claim.max_retries) or not is_bisected(call, error):
                    if len(call.contents) == 1:
                        _about_chunk(error, call.contents[0], total)
                    raise
                queue.extendleft(reversed(bisect(call, error)))
                continue
            for content in call.contents:
                if content.hash in errors:
                    raise _about_chunk(errors[content.hash], content, total)
            done += sum(len(content.positions) for content in call.contents)
            job.claim = replace(job.claim, deaths=0)  # as in the ledger, since it made progress
            job.show(done, total)

    async def _make(
        self, job: JobContext, store: DocumentStore, call: Call, done: int, total: int
    ) -> Mapping[bytes, PromptStackError]:
        """Make one call and store its vectors. Returns the errors of those that can't be stored."""
        claim, texts = job.claim, [content.text for content in call.contents]
        service = await self._providers.get_async(claim.provider)
        size = bytes_in_hand(call.contents, service.dimensions_of(claim.model))
        # In a thread: a provider's own tokenizer takes up to a fifth of a second.
        tokens = await asyncio.to_thread(_tokens, service, texts)
        async with self._memory.hold(size, job.handle.run):
            outcome = await self._calls.make(
                job,
                ProviderCall(
                    provider=claim.provider,
                    model=claim.model,
                    ask=lambda llm: llm.embed(texts, claim.model, claim.user_id),
                    need=lambda _: Need(tokens, 0, claim.is_bulk, claim.user_id, claim.tier),
                    most=lambda: most_of_texts(texts),
                    items=len(texts),
                    is_suspect=call.waste_budget is not None,
                ),
            )
            return await self._calls.store(
                outcome, lambda unit: store.store(unit, call, outcome.answer, done, total)
            )

    async def _cut_smaller(
        self,
        job: JobContext,
        store: DocumentStore,
        cutting: Cutting,
        chunks: OpenChunks,
        found: ChunkTooLong,
    ) -> Cutting:
        """Cut the unpaid chunks into pieces that the model takes. Returns the new cutting."""
        source = job.claim.request["source"]

        def cut() -> tuple[Cutting, dict[bytes, list[Passage]]]:
            smaller = self._cutter.smaller(job.claim, cutting, found.text, found.error)
            return smaller, {
                chunk.content_hash: smaller.fits.cut(chunk.text, source)
                for chunk in chunks.reserved
                if chunk.content_hash in found.unpaid
            }

        smaller, pieces = await asyncio.to_thread(cut)
        await job.ledger.write_async(lambda unit: store.replace_chunks(unit, cutting, pieces))
        return smaller


def _tokens(service: LLMService, texts: Sequence[str]) -> int:
    return sum(map(service.estimate_tokens, texts))


def _calls_for(claim: Claim, service: LLMService, chunks: Sequence[Passage]) -> list[Call]:
    """Pack chunks into calls. Raises `WorkersLost`, as `calls_of` does."""
    # A document may have the same passage twice; pay for it once.
    by_hash: dict[bytes, list[Passage]] = {}
    for chunk in chunks:
        by_hash.setdefault(chunk.content_hash, []).append(chunk)
    contents = [
        Content(hash_, tuple(chunk.position for chunk in same), same[0].text)
        for hash_, same in by_hash.items()
    ]
    limits = service.limits_of(claim.model).in_memory(service.dimensions_of(claim.model))
    return calls_of(claim, list(pack(contents, limits, service.estimate_tokens)))


def _about_chunk(error: PromptStackError, content: Content, total: int) -> PromptStackError:
    if total > 1:
        error.add(f"This is about chunk {content.positions[0] + 1} of {total}.")
    return error
