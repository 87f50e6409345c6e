"""What a worker does with an embedding job: document, chunks, batched calls, vectors."""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from repositories.documents import Passage
from repositories.session import UnitOfWork
from services.chunking import Chunker
from services.errors import NotFound
from services.execution import ClaimedJob, Execution, JobOutcome, Report
from services.llm.base import EmbeddingLimits, EmbeddingResponse
from services.llm.pool import ProviderPool


class EmbeddingService:
    """Embeds a document for each job, and of it only what has no vector yet."""

    def __init__(self, execution: Execution, providers: ProviderPool, chunker: Chunker) -> None:
        self._execution = execution
        self._providers = providers
        self._chunker = chunker

    def run(self, job_id: UUID, report: Report, rung_at: datetime | None = None) -> JobOutcome:
        """Do the job if it is there to take; see `Execution.run`."""
        return self._execution.run(job_id, self._embed, report, rung_at)

    def _embed(self, job: ClaimedJob) -> dict[str, Any]:
        claim = job.claim
        document_id = UUID(claim.request["document_id"])
        self._cut(job, document_id)

        def look(unit: UnitOfWork) -> tuple[int, Sequence[Passage]]:
            return unit.documents.count_chunks(document_id), unit.documents.chunks_without_vector(
                document_id, claim.provider, claim.model
            )

        total, missing = job.in_ledger(look)
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
        # Another job may have embedded the same passages since this one began.
        stored = job.in_ledger(
            lambda unit: unit.embeddings.find_stored(claim.provider, claim.model, list(texts))
        )
        texts = {hash_: text for hash_, text in texts.items() if hash_ not in stored}
        if not texts:
            return

        def keep(unit: UnitOfWork, answer: EmbeddingResponse) -> None:
            dimensions = answer.vectors.shape[1]
            model = unit.embeddings.register_model(claim.provider, claim.model, dimensions)
            unit.embeddings.store(model, list(texts), answer.vectors)

        job.call(
            lambda llm: llm.embed(list(texts.values()), claim.model, claim.user_id),
            keep,
            items=len(texts),
        )

    def _cut(self, job: ClaimedJob, document_id: UUID) -> None:
        """Cut the document into chunks, if its text is new.

        Outside of any transaction, as it may take seconds; so it may have to begin anew.
        """
        document = job.in_ledger(lambda unit: unit.documents.get(document_id))
        if document is None:
            raise NotFound("The document was deleted before it was embedded.")
        fingerprint = self._chunker.fingerprint(document.content_hash, document.source)
        if document.chunked_hash == fingerprint:
            return
        passages = self._chunker.cut(document.text, document.source)

        def store(unit: UnitOfWork) -> bool:
            present = unit.documents.lock(document_id)
            if present is None or present.content_hash != document.content_hash:
                return False
            unit.documents.replace_chunks(present, passages, fingerprint)
            return True

        if not job.in_ledger(store):
            self._cut(job, document_id)  # its text was replaced meanwhile

    def _result(self, job: ClaimedJob, document_id: UUID, total: int) -> dict[str, Any]:
        claim = job.claim
        totals = job.in_ledger(lambda unit: unit.attempts.totals(claim.job_id))
        model = job.in_ledger(lambda unit: unit.embeddings.find_model(claim.provider, claim.model))
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
