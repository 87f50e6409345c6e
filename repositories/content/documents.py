"""Documents and the chunks they were cut into."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Row, Select, exists, func, or_, select, text, tuple_, update

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.content.unused import NOTE, REPLACED_FOR, shared_lock
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import Chunk, Document, EmbeddingModel
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import Page, PageQuery, read_page
from promptstack.repositories.wire_values import BatchStatement, array_literal


@dataclass(frozen=True)
class Passage:
    """A piece of a document, before or after it is stored as a chunk."""

    position: int
    start: int
    text: str
    content_hash: bytes


@dataclass(frozen=True)
class DocumentRow:
    """A document without its text, which may be long."""

    id: UUID
    user_id: UUID | None
    collection_id: UUID
    source: str
    attributes: dict[str, Any] | None
    bytes: int
    created_at: datetime
    updated_at: datetime
    chunks: int

    @property
    def metadata(self) -> dict[str, Any]:
        """What its caller says of it."""
        return self.attributes or {}


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


_DELETE_CHUNKS = text(
    f"""
    WITH gone AS (DELETE FROM chunks WHERE document_id = :document RETURNING content_hash)
    {NOTE}"""  # noqa: S608 - ours
)
_ADD_CHUNKS = BatchStatement(
    "position integer, start integer, text text, content_hash bytea",
    """
    INSERT INTO chunks (document_id, position, start, text, content_hash, words)
    SELECT CAST(:document AS uuid), position, start, text, content_hash, to_tsvector((
        SELECT CAST(language AS regconfig) FROM collections WHERE id = CAST(:collection AS uuid)
    ), text)
    FROM given RETURNING id""",
)
_DELETE = text(
    f"""
    WITH gone AS (
        DELETE FROM chunks WHERE document_id = ANY (CAST(:documents AS uuid[]))
        RETURNING content_hash
    ), noted AS ({NOTE})
    DELETE FROM documents WHERE id = ANY (CAST(:documents AS uuid[]))
    """  # noqa: S608 - ours
)


_FILL_WORDS = text(
    """
    UPDATE chunks SET words = to_tsvector(CAST(language AS regconfig), chunks.text)
    FROM documents JOIN collections ON collections.id = documents.collection_id
    WHERE documents.id = chunks.document_id AND chunks.id IN (
        SELECT id FROM chunks WHERE words IS NULL ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    RETURNING chunks.id
    """
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

    def row(self, document_id: UUID) -> DocumentRow | None:
        """Return a document without its text."""
        return self._row(Document.id == document_id)

    def by_source(self, collection_id: UUID, source: str) -> DocumentRow | None:
        """Return the document of a source."""
        return self._row(Document.collection_id == collection_id, Document.source == source)

    def text_of(self, document_id: UUID) -> str:
        """Return the text of a document that is there."""
        query = select(Document.text).where(Document.id == document_id)
        return self._session.scalars(query).one()

    def page_of(
        self,
        collection_id: UUID,
        asked: PageQuery,
        *,
        source: str | None,
        where: Mapping[str, Any],
    ) -> Page[DocumentRow]:
        """Return a page of a collection's documents, without their texts."""
        query = _rows().where(Document.collection_id == collection_id)
        if source is not None:
            query = query.where(Document.source == source)
        if where:
            query = query.where(Document.attributes.contains(dict(where)))
        return read_page(self._session, query, Document.id, asked).of(_document)

    def _row(self, *conditions: ColumnElement[bool]) -> DocumentRow | None:
        row = self._session.execute(_rows().where(*conditions)).one_or_none()
        return None if row is None else _document(row)

    def put_as_of(self, document: NewDocument, time: datetime) -> UUID:
        """Store a document as it was handed in at this time, unless it has a newer text; its id."""
        its = (Document.collection_id, Document.source)
        query = select(Document).where(tuple_(*its) == document.key).with_for_update()
        there = self._session.scalars(query).one_or_none()
        if there is not None and there.updated_at > time:
            return there.id
        [document_id] = self.put_many([document]).values()
        self._session.execute(
            update(Document).where(Document.id == document_id).values(updated_at=time)
        )
        return document_id

    def lock(self, document_id: UUID) -> Document | None:
        """Return the document, locked until the transaction ends.

        Nobody deletes vectors meanwhile, so that those which are found for its chunks stay.
        """
        query = select(Document, shared_lock()).where(Document.id == document_id)
        return self._session.scalars(query.with_for_update(of=Document)).one_or_none()

    def replace_chunks(
        self, document: Document, passages: Sequence[Passage], chunked_hash: bytes
    ) -> None:
        """Replace the chunks of a document.

        Vectors stay for a while, as they belong to the content: the former text may come back.
        """
        former = {"document": document.id, "wait": REPLACED_FOR, "collection": None}
        self._session.execute(_DELETE_CHUNKS, former)
        if passages:
            _ADD_CHUNKS.run(
                self._session,
                list(map(vars, passages)),
                document=document.id,
                collection=document.collection_id,
            )
        self.update(document, chunked_hash=chunked_hash)

    def delete_with_chunks(
        self, documents: Sequence[UUID], collection_id: UUID | None = None
    ) -> None:
        """Delete documents with their chunks, and note which vectors may go.

        `collection_id` is that of a collection which is being deleted.
        """
        # Who cuts one anew is done then: a statement does not see what comes while it waits.
        query = select(Document.id).where(Document.id.in_(documents)).order_by(Document.id)
        self._session.execute(query.with_for_update())
        given = {"documents": array_literal(documents), "collection": collection_id}
        self._session.execute(_DELETE, {**given, "wait": timedelta(0)})

    def some_of(self, collection_id: UUID, chunks: int, limit: int = 200) -> list[UUID]:
        """Lock some documents of a collection: of about so many chunks together, one at least."""
        counted = select(func.count()).where(Chunk.document_id == Document.id).scalar_subquery()
        rows = self._session.execute(
            select(Document.id, counted)
            .where(Document.collection_id == collection_id)
            .limit(limit)
            .with_for_update(skip_locked=True, of=Document)
        ).all()
        found: list[UUID] = []
        for id_, count in rows:
            chunks -= count
            if found and chunks < 0:
                break
            found.append(id_)
        return found

    def fill_words(self, limit: int) -> int:
        """Fill in the words of some chunks that an older version has cut. Returns how many."""
        return len(self._session.execute(_FILL_WORDS, {"limit": limit}).all())

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


def _rows() -> Select[Any]:
    chunks = select(func.count()).where(Chunk.document_id == Document.id).scalar_subquery()
    return select(
        Document.id,
        Document.user_id,
        Document.collection_id,
        Document.source,
        Document.attributes.label("attributes"),
        func.octet_length(Document.text).label("bytes"),
        Document.created_at,
        Document.updated_at,
        chunks.label("chunks"),
    )


def _document(row: Row[Any]) -> DocumentRow:
    return DocumentRow(**row._mapping)
