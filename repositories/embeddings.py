"""Vectors: one a model and content, in a partition a model, with an HNSW index of its own.

A vector belongs to the content of a chunk and not to the chunk: text that comes again, in another
version of a document or in another document, is found by its hash and not paid for again.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import (
    Column,
    ColumnElement,
    DateTime,
    Integer,
    LargeBinary,
    Table,
    cast,
    func,
    select,
    text,
)

from repositories.base import BaseRepository
from repositories.models import Base, Chunk, Document, EmbeddingModel

EMBEDDINGS = Table(
    "embeddings",
    Base.metadata,
    Column("model_id", Integer, primary_key=True),
    Column("content_hash", LargeBinary, primary_key=True),
    Column("vector", VECTOR, nullable=False),
    Column("created_at", DateTime(timezone=True), server_default=func.now()),
    postgresql_partition_by="LIST (model_id)",
)

# pgvector indexes `vector` up to 2,000 dimensions and `halfvec` up to 4,000 (its README, HNSW).
MAX_INDEXED_VECTOR = 2_000
MAX_INDEXED_HALFVEC = 4_000

HASH_BYTES = 32
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_END = b"\xff\xff"


@dataclass(frozen=True)
class Match:
    """A passage that search found."""

    document_id: UUID
    source: str
    position: int
    start: int
    text: str
    score: float
    """Cosine similarity, 1 is the same direction."""


class EmbeddingRepository(BaseRepository[EmbeddingModel]):
    """Models and their vectors."""

    model = EmbeddingModel

    def find_model(self, provider: str, model: str) -> EmbeddingModel | None:
        """The newest dimension of a model that has vectors here, or None."""
        query = (
            select(EmbeddingModel)
            .where(EmbeddingModel.provider == provider, EmbeddingModel.model == model)
            .order_by(EmbeddingModel.id.desc())
            .limit(1)
        )
        return self._session.scalars(query).one_or_none()

    def register_model(self, provider: str, model: str, dimensions: int) -> EmbeddingModel:
        """Return the row of a model and dimension; the first time, make its partition and index."""
        known = self._find(provider, model, dimensions)
        if known is None:
            # Two workers may meet a new model at once; the second waits here, and then sees it.
            self._session.execute(
                text("SELECT pg_advisory_xact_lock(hashtext('embedding_models'))")
            )
            known = self._find(provider, model, dimensions)
        return known or self._add_model(provider, model, dimensions)

    def store(
        self, model: EmbeddingModel, hashes: Sequence[bytes], vectors: npt.NDArray[np.float32]
    ) -> None:
        """Store vectors of shape (len(hashes), dimensions); one that is there already stays.

        By COPY BINARY: turning floats into SQL text costs more than everything else together.
        """
        cursor = self._session.connection().connection.cursor()
        try:
            cursor.execute(
                "CREATE TEMPORARY TABLE IF NOT EXISTS incoming_vectors"
                " (model_id integer, content_hash bytea, vector vector) ON COMMIT DELETE ROWS"
            )
            cursor.copy_expert(
                "COPY incoming_vectors FROM STDIN (FORMAT binary)",
                io.BytesIO(_copy_rows(model.id, hashes, vectors)),
            )
            cursor.execute(
                "INSERT INTO embeddings (model_id, content_hash, vector)"
                " SELECT model_id, content_hash, vector FROM incoming_vectors"
                # In one order: two jobs with the same passages would else wait for each other.
                " ORDER BY content_hash ON CONFLICT DO NOTHING"
            )
            cursor.execute("TRUNCATE incoming_vectors")
        finally:
            cursor.close()

    def find_stored(self, provider: str, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the contents that have a vector of this model."""
        query = (
            select(EMBEDDINGS.c.content_hash)
            .join(EmbeddingModel, EmbeddingModel.id == EMBEDDINGS.c.model_id)
            .where(EmbeddingModel.provider == provider, EmbeddingModel.model == model)
            .where(EMBEDDINGS.c.content_hash.in_(hashes))
        )
        return set(map(bytes, self._session.scalars(query)))

    def count(self, model: EmbeddingModel) -> int:
        """How many vectors a model has."""
        query = select(func.count()).where(EMBEDDINGS.c.model_id == model.id)
        return self._session.scalar(query) or 0

    def search(
        self, model: EmbeddingModel, vector: npt.NDArray[np.float32], limit: int
    ) -> list[Match]:
        """The passages nearest to `vector`, of shape (dimensions,), best first."""
        # pgvector's 40 misses one neighbour in a hundred; 200 costs 2 ms more (20,000 vectors).
        self._session.execute(text(f"SET LOCAL hnsw.ef_search = {min(max(200, 4 * limit), 1_000)}"))
        # Without it, an index scan ends at ef_search rows, of which some may belong to no chunk.
        self._session.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
        distance = _indexed(model.dimensions).cosine_distance(vector)
        rows = self._session.execute(
            select(
                Document.id,
                Document.source,
                Chunk.position,
                Chunk.start,
                Chunk.text,
                (1 - distance).label("score"),
            )
            .select_from(EMBEDDINGS)
            .join(Chunk, Chunk.content_hash == EMBEDDINGS.c.content_hash)
            .join(Document, Document.id == Chunk.document_id)
            .where(EMBEDDINGS.c.model_id == model.id)
            .order_by(distance)
            .limit(limit)
        )
        return [Match(*row) for row in rows]

    def _find(self, provider: str, model: str, dimensions: int) -> EmbeddingModel | None:
        found = self.get_many(provider=provider, model=model, dimensions=dimensions)
        return found[0] if found else None

    def _add_model(self, provider: str, model: str, dimensions: int) -> EmbeddingModel:
        row = self.create(provider=provider, model=model, dimensions=dimensions)
        partition = f"embeddings_{row.id}"
        # Fixed names and integers only: DDL takes no parameters.
        self._session.execute(
            text(f"CREATE TABLE {partition} PARTITION OF embeddings FOR VALUES IN ({row.id})")
        )
        kind = _index_type(dimensions)
        if kind is not None:
            self._session.execute(
                text(
                    f"CREATE INDEX {partition}_hnsw ON {partition}"
                    f" USING hnsw ((vector::{kind}({dimensions})) {kind}_cosine_ops)"
                )
            )
        return row


def _index_type(dimensions: int) -> str | None:
    if dimensions <= MAX_INDEXED_VECTOR:
        return "vector"
    return "halfvec" if dimensions <= MAX_INDEXED_HALFVEC else None


def _indexed(dimensions: int) -> ColumnElement[object]:
    """The expression that the model's index is built on."""
    if _index_type(dimensions) == "halfvec":
        return cast(EMBEDDINGS.c.vector, HALFVEC(dimensions))
    return cast(EMBEDDINGS.c.vector, VECTOR(dimensions))


def _copy_rows(model_id: int, hashes: Sequence[bytes], vectors: npt.NDArray[np.float32]) -> bytes:
    """Lay rows out as COPY BINARY reads them (PostgreSQL manual, COPY; pgvector's vector_recv).

    Every row has the same size, so one structured array holds them all.
    """
    count, dimensions = vectors.shape
    rows = np.zeros(
        count,
        dtype=[
            ("fields", ">i2"),
            ("model_size", ">i4"),
            ("model", ">i4"),
            ("hash_size", ">i4"),
            ("hash", f"V{HASH_BYTES}"),
            ("vector_size", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dimensions,)),
        ],
    )
    rows["fields"] = 3
    rows["model_size"] = 4
    rows["model"] = model_id
    rows["hash_size"] = HASH_BYTES
    rows["hash"] = np.frombuffer(b"".join(hashes), dtype=f"V{HASH_BYTES}")
    rows["vector_size"] = 4 + 4 * dimensions
    rows["dimensions"] = dimensions
    rows["vector"] = vectors
    return COPY_HEADER + rows.tobytes() + COPY_END
