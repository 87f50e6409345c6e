"""Vectors: one a model and content, in a partition a model, with an HNSW index of its own.

A vector belongs to the content of a chunk and not to the chunk: text that comes again, in another
version of a document or in another document, is found by its hash and not paid for again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg2.errors
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
    literal,
    select,
    text,
    true,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.types import TypeEngine

from promptstack.config.names import VectorType
from promptstack.repositories.arrays import ArrayLiteral
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.copying import copy_binary
from promptstack.repositories.models import Base, Chunk, Document, EmbeddingModel
from promptstack.repositories.runs.models import Item


def _table(name: str, vector: TypeEngine[Any]) -> Table:
    return Table(
        name,
        Base.metadata,
        Column("model_id", Integer, primary_key=True),
        Column("content_hash", LargeBinary, primary_key=True),
        Column("vector", vector, nullable=False),
        Column("created_at", DateTime(timezone=True), server_default=func.now()),
        postgresql_partition_by="LIST (model_id)",
    )


TABLES: Mapping[str, Table] = {
    VectorType.VECTOR: _table("embeddings", VECTOR()),
    VectorType.HALFVEC: _table("half_embeddings", HALFVEC()),
}
"""Of each storage one, as all partitions of a table have its type."""

# pgvector indexes `vector` up to 2,000 dimensions and `halfvec` up to 4,000 (its README, HNSW).
MAX_INDEXED_VECTOR = 2_000
MAX_INDEXED_HALFVEC = 4_000

HASH_BYTES = 32
COUNTED = 100_000
"""So many vectors are counted in some hundredths of a second."""


@dataclass(frozen=True)
class Match:
    """A passage that search found: of a document, or an item of a run."""

    document_id: UUID | None
    source: str
    """Of an item: the source in its metadata, else its `custom_id`."""
    position: int
    start: int
    text: str
    score: float
    """Cosine similarity, 1 is the same direction."""
    run_id: UUID | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """The metadata of an item."""


class EmbeddingRepository(BaseRepository[EmbeddingModel]):
    """Models and their vectors."""

    model = EmbeddingModel

    def find_model(self, provider: str, model: str) -> EmbeddingModel | None:
        """The newest dimension of a model that has vectors here, or None."""
        return next(iter(self.dimensions_of(provider, model)), None)

    def dimensions_of(self, provider: str, model: str) -> Sequence[EmbeddingModel]:
        """All dimensions that a model has had here, the newest first."""
        query = (
            select(EmbeddingModel)
            .where(EmbeddingModel.provider == provider, EmbeddingModel.model == model)
            .order_by(EmbeddingModel.created_at.desc(), EmbeddingModel.id.desc())
        )
        return self._session.scalars(query).all()

    def lock_models(self) -> None:
        """Two workers may meet a new model at once; the second waits here, and then sees it."""
        self._session.execute(text("SELECT pg_advisory_xact_lock(hashtext('embedding_models'))"))

    def make_newest(self, model: EmbeddingModel) -> None:
        """Let a dimension that a model has once more be found before those that came between."""
        self.update(model, created_at=func.clock_timestamp())

    def register_model(
        self,
        provider: str,
        model: str,
        dimensions: int,
        *,
        storage: VectorType = VectorType.VECTOR,
        with_index: bool = True,
    ) -> EmbeddingModel:
        """Return the row of a model and dimension; the first time, make its partition and index.

        A bulk load goes `with_index=False`, and builds it at its end: see `VectorIndexes`.
        """
        known = self._find(provider, model, dimensions)
        if known is None:
            self.lock_models()
            known = self._find(provider, model, dimensions)
        return known or self._add_model(provider, model, dimensions, storage, with_index=with_index)

    def store(
        self, model: EmbeddingModel, hashes: Sequence[bytes], vectors: npt.NDArray[np.float32]
    ) -> None:
        """Store vectors of shape (len(hashes), dimensions); one that is there already stays.

        By COPY BINARY: turning floats into SQL text costs more than everything else together.
        Straight into the model's partition, as next to never one of them is there; else by way of
        a temporary table, which costs twice as much.
        """
        rows = vector_rows(model, hashes, vectors).view(np.uint8).data
        partition = partition_of(model)
        columns = "(model_id, content_hash, vector)"
        cursor = self._session.connection().connection.cursor()
        try:
            cursor.execute("SAVEPOINT vectors")
            try:
                copy_binary(cursor, f"{partition} {columns}", rows)
            except psycopg2.errors.UniqueViolation:
                cursor.execute("ROLLBACK TO SAVEPOINT vectors")
                cursor.execute(f"CREATE TEMPORARY TABLE incoming (LIKE {partition}) ON COMMIT DROP")
                copy_binary(cursor, f"incoming {columns}", rows)
                ordered = "SELECT model_id, content_hash, vector FROM incoming ORDER BY 2"
                cursor.execute(
                    f"INSERT INTO {partition} {columns} {ordered} ON CONFLICT DO NOTHING"
                )
                cursor.execute("DROP TABLE incoming")
            cursor.execute("RELEASE SAVEPOINT vectors")
        finally:
            cursor.close()

    def copy_vectors(self, keys: Mapping[bytes, bytes]) -> None:
        """Store the vectors of some contents, of all models, under other keys too."""
        hashes = ArrayLiteral(LargeBinary())
        pair = (
            func.unnest(literal(list(keys), hashes), literal(list(keys.values()), hashes))
            .table_valued("old", "new")
            .render_derived()
        )
        # By model, as the index of a partition begins with it.
        for model in self._session.scalars(select(EmbeddingModel)).all():
            vectors = TABLES[model.storage]
            found = (
                select(vectors.c.model_id, pair.c.new, vectors.c.vector)
                .join_from(pair, vectors, vectors.c.content_hash == pair.c.old)
                .where(vectors.c.model_id == model.id)
            )
            columns = ["model_id", "content_hash", "vector"]
            copied = insert(vectors).from_select(columns, found).on_conflict_do_nothing()
            self._session.execute(copied)

    def find_stored(self, provider: str, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Those of the contents that have a vector of this model, of its newest dimension."""
        known = self.find_model(provider, model)
        if known is None or not hashes:
            return set()
        vectors = TABLES[known.storage]
        wanted = func.any(literal(list(hashes), ArrayLiteral(LargeBinary())))
        query = select(vectors.c.content_hash).where(
            vectors.c.model_id == known.id, vectors.c.content_hash == wanted
        )
        return set(map(bytes, self._session.scalars(query)))

    def count(self, model: EmbeddingModel) -> int:
        """How many vectors a model has."""
        vectors = TABLES[model.storage]
        query = select(func.count()).where(vectors.c.model_id == model.id)
        return self._session.scalar(query) or 0

    def estimate(self, model: EmbeddingModel) -> float:
        """About how many vectors a model has, if there are many: counting them takes seconds."""
        known = self._session.scalar(
            text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:partition)"),
            {"partition": partition_of(model)},
        )
        # It is -1 before the first ANALYZE, and may be far off soon after it.
        return known if known is not None and known >= COUNTED else self.count(model)

    def search(
        self, model: EmbeddingModel, vector: npt.NDArray[np.float32], limit: int
    ) -> list[Match]:
        """The passages nearest to `vector`, of shape (dimensions,), best first."""
        self._search_widely(limit)
        vectors = TABLES[model.storage]
        distance = _indexed(model).cosine_distance(vector)
        rows = self._session.execute(
            select(
                Document.id,
                Document.source,
                Chunk.position,
                Chunk.start,
                Chunk.text,
                (1 - distance).label("score"),
            )
            .select_from(vectors)
            .join(Chunk, Chunk.content_hash == vectors.c.content_hash)
            .join(Document, Document.id == Chunk.document_id)
            .where(vectors.c.model_id == model.id)
            .order_by(distance)
            .limit(limit)
        )
        return [Match(*row) for row in rows]

    def search_items(
        self,
        model: EmbeddingModel,
        vector: npt.NDArray[np.float32],
        limit: int,
        where: Mapping[str, Any],
    ) -> list[Match]:
        """The items of runs nearest to `vector` whose metadata have what `where` says.

        The same text in several items is found once.
        """
        self._search_widely(limit)
        vectors = TABLES[model.storage]
        distance = _indexed(model).cosine_distance(vector)
        named = [Item.attributes.contains(dict(where))] if where else []
        # Of the items with one text, that of the newest run.
        item = (
            select(Item.run_id, Item.position, Item.custom_id, Item.text, Item.attributes)
            .where(Item.content_hash == vectors.c.content_hash, Item.text.is_not(None), *named)
            .order_by(Item.run_id.desc(), Item.position)
            .limit(1)
            .lateral("item")
        )
        query = (
            select(
                func.coalesce(item.c.attributes["source"].astext, item.c.custom_id),
                item.c.position,
                item.c.text,
                (1 - distance).label("score"),
                item.c.run_id,
                item.c.attributes,
            )
            .select_from(vectors)
            .join(item, true())
            .where(vectors.c.model_id == model.id)
            .order_by(distance)
            .limit(limit)
        )
        rows = self._session.execute(query).all()
        if where and len(rows) < limit:
            # The index gives up where next to nothing fits; then all that fits is compared.
            self._session.execute(text("SET LOCAL enable_indexscan = off"))
            rows = self._session.execute(query).all()
        return [
            Match(None, source, position, _start_in(attributes), text, score, run_id, attributes)
            for source, position, text, score, run_id, attributes in rows
        ]

    def _search_widely(self, limit: int) -> None:
        # pgvector's 40 misses one neighbour in a hundred; 200 costs 2 ms more (20,000 vectors).
        self._session.execute(text(f"SET LOCAL hnsw.ef_search = {min(max(200, 4 * limit), 1_000)}"))
        # Without it, an index scan ends at ef_search rows, of which some may belong to no chunk.
        self._session.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))

    def _find(self, provider: str, model: str, dimensions: int) -> EmbeddingModel | None:
        found = self.get_many(provider=provider, model=model, dimensions=dimensions)
        return found[0] if found else None

    def _add_model(
        self,
        provider: str,
        model: str,
        dimensions: int,
        storage: VectorType,
        *,
        with_index: bool,
    ) -> EmbeddingModel:
        row = self.create(provider=provider, model=model, dimensions=dimensions, storage=storage)
        partition, parent = partition_of(row), TABLES[storage].name
        # Fixed names and integers only: DDL takes no parameters.
        self._session.execute(
            text(f"CREATE TABLE {partition} PARTITION OF {parent} FOR VALUES IN ({row.id})")
        )
        if with_index and index_type(row) is not None:
            self._session.execute(text(create_index(row)))
        return row


def partition_of(model: EmbeddingModel) -> str:
    """Where the model's vectors lie."""
    return f"{TABLES[model.storage].name}_{model.id}"


def index_name(model: EmbeddingModel) -> str:
    """The name of the model's HNSW index."""
    return f"{partition_of(model)}_hnsw"


def index_type(model: EmbeddingModel) -> str | None:
    """As what the model's vectors are indexed; None where pgvector can't index so many numbers."""
    if model.dimensions <= MAX_INDEXED_VECTOR and model.storage == VectorType.VECTOR:
        return "vector"
    return "halfvec" if model.dimensions <= MAX_INDEXED_HALFVEC else None


def create_index(model: EmbeddingModel, how: str = "") -> str:
    """The statement that builds the model's index, `how` being such as CONCURRENTLY."""
    kind = index_type(model)
    return (
        f"CREATE INDEX {how} {index_name(model)} ON {partition_of(model)}"
        f" USING hnsw ((vector::{kind}({model.dimensions})) {kind}_cosine_ops)"
    )


def _start_in(attributes: Mapping[str, Any]) -> int:
    """Where a chunk starts in its text: a caller's own field of this name may be anything."""
    start = attributes.get("start")
    return start if type(start) is int else 0


def _indexed(model: EmbeddingModel) -> ColumnElement[object]:
    """The expression that the model's index is built on."""
    vector = TABLES[model.storage].c.vector
    kind = HALFVEC if index_type(model) == "halfvec" else VECTOR
    return cast(vector, kind(model.dimensions))


def vector_rows(
    model: EmbeddingModel, hashes: Sequence[bytes], vectors: npt.NDArray[np.float32]
) -> npt.NDArray[Any]:
    """Lay rows out as COPY BINARY reads them (PostgreSQL manual, COPY; pgvector's vector_recv).

    Every row has the same size, so one structured array holds them all.
    """
    count, dimensions = vectors.shape
    # In one order: two workers with the same contents would else wait for each other.
    order = sorted(range(count), key=hashes.__getitem__)
    kind, size = (">f4", 4) if model.storage == VectorType.VECTOR else (">f2", 2)
    rows = np.empty(
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
            ("vector", kind, (dimensions,)),
        ],
    )
    rows["fields"] = 3
    rows["model_size"] = 4
    rows["model"] = model.id
    rows["hash_size"] = HASH_BYTES
    rows["hash"] = np.frombuffer(b"".join(hashes[i] for i in order), dtype=f"V{HASH_BYTES}")
    rows["vector_size"] = 4 + size * dimensions
    rows["dimensions"], rows["unused"] = dimensions, 0
    # A number too large for 2 bytes becomes infinite, which PostgreSQL refuses; a unit vector's
    # never is.
    with np.errstate(over="ignore"):
        rows["vector"] = vectors[order]
    return rows
