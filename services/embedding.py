"""What a worker does with an embedding job: document, chunks, batched calls, vectors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from repositories.documents import Passage
from repositories.session import Ledger, UnitOfWork
from services.chunking import Chunker
from services.errors import NotFound
from services.execution import ClaimedJob, Execution, JobOutcome, Report
from services.llm.base import EmbeddingLimits, EmbeddingResponse
from services.llm.pool import ProviderPool


class EmbeddingService:
    """Embeds a document for each job, and of it only what has no vector yet."""

    def __init__(
        self, execution: Execution, ledger: Ledger, providers: ProviderPool, chunker: Chunker
    ) -> None:
        self._execution = execution
        self._ledger = ledger
        self._providers = providers
        self._chunker = chunker

    def run(self, job_id: UUID, report: Report) -> JobOutcome:
        """Do the job if it is there to take; see `Execution.run`."""
        return self._execution.run(job_id, self._embed, report)

    def _embed(self, job: ClaimedJob) -> dict[str, Any]:
        claim = job.claim
        document_id = UUID(claim.request["document_id"])
        total, missing = self._prepare(document_id, claim.provider, claim.model)
        done = total - len(missing)
        job.advance(done, total)
        limits = self._providers.get(claim.provider).embedding_limits
        # The same passage may stand in a document twice; it is paid for once.
        times = Counter(passage.content_hash for passage in missing)
        unique = {passage.content_hash: passage for passage in missing}
        for batch in pack(list(unique.values()), limits):
            self._embed_batch(job, {passage.content_hash: passage.text for passage in batch})
            done += sum(times[passage.content_hash] for passage in batch)
            job.advance(done, total)
        return self._result(job, document_id, total)

    def _embed_batch(self, job: ClaimedJob, texts: dict[bytes, str]) -> None:
        claim = job.claim

        def keep(unit: UnitOfWork, answer: EmbeddingResponse) -> None:
            dimensions = answer.vectors.shape[1]
            model = unit.embeddings.register_model(claim.provider, claim.model, dimensions)
            unit.embeddings.store(model, list(texts), answer.vectors)

        job.call(
            lambda llm: llm.embed(list(texts.values()), claim.model, claim.user_id),
            keep,
            items=len(texts),
        )

    def _prepare(
        self, document_id: UUID, provider: str, model: str
    ) -> tuple[int, Sequence[Passage]]:
        """Cut the document if its text is new; how many chunks it has, and which lack a vector."""
        with self._ledger.transaction() as unit:
            document = unit.documents.lock(document_id)
            if document is None:
                raise NotFound("The document was deleted before it was embedded.")
            fingerprint = self._chunker.fingerprint(document.content_hash, document.source)
            if document.chunked_hash != fingerprint:
                passages = self._chunker.cut(document.text, document.source)
                unit.documents.replace_chunks(document, passages, fingerprint)
            total = unit.documents.count_chunks(document_id)
            return total, unit.documents.chunks_without_vector(document_id, provider, model)

    def _result(self, job: ClaimedJob, document_id: UUID, total: int) -> dict[str, Any]:
        with self._ledger.transaction() as unit:
            totals = unit.attempts.totals(job.claim.job_id)
            model = unit.embeddings.find_model(job.claim.provider, job.claim.model)
        return {
            "document_id": str(document_id),
            "chunks": total,
            "embedded": totals.items,
            "reused": max(total - totals.items, 0),
            "provider_calls": totals.calls,
            "tokens_used": totals.tokens,
            "dimensions": model.dimensions if model else None,
        }


def pack(passages: Sequence[Passage], limits: EmbeddingLimits) -> Iterator[list[Passage]]:
    """Fill provider calls in order, each within the limits of items and UTF-8 bytes."""
    batch: list[Passage] = []
    size = 0
    for passage in passages:
        bytes_ = len(passage.text.encode())
        if batch and (len(batch) == limits.items or size + bytes_ > limits.bytes):
            yield batch
            batch, size = [], 0
        batch.append(passage)
        size += bytes_
    if batch:
        yield batch
