"""Documents and the chunks they were cut into."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, insert, or_, select

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.models import Chunk, Document, EmbeddingModel, new_id
from promptstack.repositories.wire_values import BatchStatement


@dataclass(frozen=True)
class Passage:
    """A piece of a document, before or after it is stored as a chunk."""

    position: int
    start: int
    text: str
    content_hash: bytes


@dataclass(frozen=True)
class NewDocument:
    """A text that is to be stored for its source."""

    user_id: UUID | None
    collection_id: UUID
    source: str
    text: str
    content_hash: bytes
    metadata: str | None = None
    """As JSON. None leaves that of a document which is there as it is."""

    @property
    def key(self) -> tuple[UUID, str]:
        """There is one document for each collection and source."""
        return (self.collection_id, self.source)


_PUT = BatchStatement(
    "id uuid, user_id uuid, collection_id uuid, source text, text text, content_hash bytea, "
    "metadata jsonb",
    """
    INSERT INTO documents (id, user_id, collection_id, source, text, content_hash, metadata)
    SELECT id, user_id, collection_id, source, text, content_hash, metadata FROM given
    ON CONFLICT ON CONSTRAINT documents_source_key DO UPDATE
    SET text = excluded.text, content_hash = excluded.content_hash, updated_at = now(),
        metadata = coalesce(excluded.metadata, documents.metadata)
    RETURNING id, collection_id, source""",
)


class DocumentRepository(BaseRepository[Document]):
    """Documents, one for each collection and source."""

    model = Document

    def put_many(self, documents: Sequence[NewDocument]) -> dict[tuple[UUID, str], UUID]:
        """Store documents, or new texts for their sources. Returns their ids by their keys."""
        # One statement stores a document once: of several texts, the last one.
        last = {document.key: document for document in documents}
        # In one order, so that two who store the same wait for each other one way.
        ordered = sorted(last.values(), key=lambda document: document.key)
        rows = _PUT.run(self._session, [{"id": new_id(), **vars(one)} for one in ordered])
        return {(row.collection_id, row.source): row.id for row in rows}

    def lock(self, document_id: UUID) -> Document | None:
        """Return the document, locked until the transaction ends."""
        query = select(Document).where(Document.id == document_id).with_for_update()
        return self._session.scalars(query).one_or_none()

    def replace_chunks(
        self, document: Document, passages: Sequence[Passage], chunked_hash: bytes
    ) -> None:
        """Replace the chunks of a document. Vectors stay, as they belong to the content."""
        self._session.execute(delete(Chunk).where(Chunk.document_id == document.id))
        if passages:
            rows = [{"document_id": document.id, **vars(passage)} for passage in passages]
            self._session.execute(insert(Chunk), rows)
        self.update(document, chunked_hash=chunked_hash)

    def chunk_keys(self, document_id: UUID) -> set[bytes]:
        """Return the keys of the vectors of a document's chunks."""
        query = select(Chunk.content_hash).where(Chunk.document_id == document_id)
        return set(map(bytes, self._session.scalars(query)))

    def chunks(self, document_id: UUID) -> Sequence[Passage]:
        """Return the document's chunks, in order."""
        return self._passages(Chunk.document_id == document_id)

    def count_chunks(self, document_id: UUID) -> int:
        """Count the chunks of a document."""
        query = select(func.count()).where(Chunk.document_id == document_id)
        return self._session.scalar(query) or 0

    def chunks_without_vector(
        self, document_id: UUID, provider: str, model: str
    ) -> Sequence[Passage]:
        """Return the document's chunks that have no vector of this model, in order."""
        of_model = (EmbeddingModel.provider == provider, EmbeddingModel.model == model)
        stored = or_(
            *(
                exists()
                .where(vectors.c.content_hash == Chunk.content_hash)
                .where(vectors.c.model_id == EmbeddingModel.id, *of_model)
                for vectors in TABLES.values()
            )
        )
        return self._passages(Chunk.document_id == document_id, ~stored)

    def _passages(self, *conditions: ColumnElement[bool]) -> Sequence[Passage]:
        rows = self._session.execute(
            select(Chunk.position, Chunk.start, Chunk.text, Chunk.content_hash)
            .where(*conditions)
            .order_by(Chunk.position)
        )
        return [Passage(*row) for row in rows]
