"""The tables of contents: collections, documents, their chunks, and what vectors belong to."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    FetchedValue,
    ForeignKey,
    Identity,
    Index,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.config.names import VectorType
from promptstack.repositories.models import Base, new_id, one_of


class Reservation(Base):
    """A content that a running attempt is about to pay for; void when that attempt is over."""

    __tablename__ = "reservations"

    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    content_hash: Mapped[bytes] = mapped_column(primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    attempt: Mapped[int]

    __table_args__ = (Index("reservations_job", "job_id"),)


class Collection(Base):
    """What documents and runs belong to, and what is searched. Every user has a default one."""

    __tablename__ = "collections"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    """Of a default collection: the user's id, and only zeros for callers without a user."""
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str]
    """Unique for its user."""
    description: Mapped[str] = mapped_column(server_default="")
    language: Mapped[str] = mapped_column(server_default="english")
    """Of its texts: a configuration of PostgreSQL's text search."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    deleted_at: Mapped[datetime | None]
    """Since when it is being deleted: what is in it goes in batches, and its row at the end."""

    __table_args__ = (
        Index(
            "collections_name",
            "user_id",
            "name",
            unique=True,
            postgresql_where=text("deleted_at IS NULL"),
            postgresql_nulls_not_distinct=True,
        ),
        Index("collections_of_user", "user_id", "id"),
        Index("collections_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class Document(Base):
    """A text that was embedded, or is going to be."""

    __tablename__ = "documents"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id"), server_default=FetchedValue()
    )
    """The default collection of its user, where nothing is said."""
    source: Mapped[str]
    """Where it came from: a path, an address, an id of the caller's. Unique in its collection."""
    attributes: Mapped[dict[str, Any] | None] = mapped_column("metadata")
    """What its caller says of it."""
    text: Mapped[str]
    content_hash: Mapped[bytes]
    chunked_hash: Mapped[bytes | None]
    """Which text, and how, its chunks were cut from; stale when it differs."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now(), onupdate=func.now())

    __table_args__ = (
        UniqueConstraint("collection_id", "source", name="documents_source_key"),
        Index("documents_of_collection", "collection_id", "id"),
        Index(
            "documents_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
    )


_WITHOUT_WORDS = text("words IS NULL")


class Chunk(Base):
    """A passage of a document."""

    __tablename__ = "chunks"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    document_id: Mapped[UUID] = mapped_column(ForeignKey("documents.id", ondelete="CASCADE"))
    position: Mapped[int]
    start: Mapped[int]
    """Offset of its first character in the document."""
    text: Mapped[str]
    content_hash: Mapped[bytes]
    """SHA-256 of the text: what its vector is found by."""
    words: Mapped[str | None] = mapped_column(TSVECTOR, deferred=True)
    """Of the text, in the language of its collection; None in what an older version has cut."""

    __table_args__ = (
        Index("chunks_words", "words", postgresql_using="gin"),
        Index("chunks_without_words", "id", postgresql_where=_WITHOUT_WORDS),
        UniqueConstraint("document_id", "position", name="chunks_document_position_key"),
        Index("chunks_content_hash", "content_hash"),
    )


class UnusedContent(Base):
    """A content of which a chunk or an item was deleted: if no other has it, its vectors go."""

    __tablename__ = "unused_contents"

    content_hash: Mapped[bytes] = mapped_column(primary_key=True)
    due_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """Not before. A text that a document had before may come back."""
    collection_id: Mapped[UUID | None]
    """Of a collection that is being deleted: it is there until its vectors are gone."""

    __table_args__ = (
        Index("unused_contents_due", "due_at"),
        Index(
            "unused_contents_of_collection",
            "collection_id",
            postgresql_where=text("collection_id IS NOT NULL"),
        ),
    )


class QueryVector(Base):
    """The vector of a query or of an input that somebody waited for, which is not paid for again.

    It is no passage that can be found.
    """

    __tablename__ = "query_vectors"

    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    content_hash: Mapped[bytes] = mapped_column(primary_key=True)
    """As of a chunk with this text: each user's own."""
    vector: Mapped[bytes]
    """Its numbers, as little-endian float32."""
    tokens: Mapped[int | None]
    """Of the input, by the provider's count. In a call of several, its share by our estimate."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("query_vectors_created", "created_at"),)


class EmbeddingModel(Base):
    """A model that made vectors; the vectors lie in a partition of their own."""

    __tablename__ = "embedding_models"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    provider: Mapped[str]
    model: Mapped[str]
    dimensions: Mapped[int]
    storage: Mapped[str] = mapped_column(server_default=VectorType.VECTOR)
    is_asked: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether requests have asked for this size. It is none of the model's own, so nothing is
    searched in it."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        one_of("storage", VectorType),
        UniqueConstraint(
            "provider", "model", "dimensions", "is_asked", name="embedding_models_key"
        ),
    )
