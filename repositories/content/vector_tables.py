"""The tables of vectors: one for each storage, with a partition and an HNSW index a model."""

from collections.abc import Mapping
from typing import Any

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Column, ColumnElement, DateTime, Integer, LargeBinary, Table, cast, func
from sqlalchemy.types import TypeEngine

from promptstack.config.names import VectorType
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.models import Base


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
"""One for each storage, as all partitions of a table have the same type."""

# pgvector indexes `vector` up to 2,000 dimensions and `halfvec` up to 4,000 (its README, HNSW).
MAX_INDEXED_VECTOR = 2_000
MAX_INDEXED_HALFVEC = 4_000


def partition_of(model: EmbeddingModel) -> str:
    """Return the name of the model's partition."""
    return f"{TABLES[model.storage].name}_{model.id}"


def index_name(model: EmbeddingModel) -> str:
    """Return the name of the model's HNSW index."""
    return f"{partition_of(model)}_hnsw"


def index_type(model: EmbeddingModel) -> str | None:
    """Return the type of the model's index. None if pgvector can't index so many dimensions."""
    if model.dimensions <= MAX_INDEXED_VECTOR and model.storage == VectorType.VECTOR:
        return "vector"
    return "halfvec" if model.dimensions <= MAX_INDEXED_HALFVEC else None


def create_index(model: EmbeddingModel, how: str = "") -> str:
    """Return the statement that builds the model's index. `how` may be CONCURRENTLY."""
    kind = index_type(model)
    return (
        f"CREATE INDEX {how} {index_name(model)} ON {partition_of(model)}"
        f" USING hnsw ((vector::{kind}({model.dimensions})) {kind}_cosine_ops)"
    )


def indexed_vector(model: EmbeddingModel) -> ColumnElement[object]:
    """Return the expression that the model's index is built on."""
    vector = TABLES[model.storage].c.vector
    kind = HALFVEC if index_type(model) == "halfvec" else VECTOR
    return cast(vector, kind(model.dimensions))
