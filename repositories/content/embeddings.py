"""Vectors: one for each model and content.

A vector belongs to the content of a chunk, not to the chunk. Text that comes again, in another
version of a document or in another document, is found by its hash and is not paid for again.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg2.errors
from sqlalchemy import LargeBinary, func, literal, select, text
from sqlalchemy.dialects.postgresql import insert

from promptstack.config.names import VectorType
from promptstack.repositories.base import BaseRepository
from promptstack.repositories.content.vector_tables import (
    TABLES,
    create_index,
    index_type,
    partition_of,
)
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.wire_values import SENT_AT_ONCE, ArrayLiteral, copy_binary

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

HASH_BYTES = 32
Vector: TypeAlias = "npt.NDArray[np.float32]"
"""The numbers of one vector."""
COUNTED = 100_000
"""Counting so many vectors takes some hundredths of a second."""


class EmbeddingRepository(BaseRepository[EmbeddingModel]):
    """Models and their vectors."""

    model = EmbeddingModel

    def find_model(self, provider: str, model: str) -> EmbeddingModel | None:
        """Return the newest dimension of a model, or None if it has no vectors here."""
        return next(iter(self.dimensions_of(provider, model)), None)

    def dimensions_of(self, provider: str, model: str) -> Sequence[EmbeddingModel]:
        """Return all dimensions that a model has had here by itself, the newest first."""
        return self.sizes_of(provider, model)[0]

    def sizes_of(
        self, provider: str, model: str
    ) -> tuple[Sequence[EmbeddingModel], Sequence[EmbeddingModel]]:
        """Return all dimensions that a model has had by itself, and those that were asked for.

        Both are the newest first.
        """
        query = (
            select(EmbeddingModel)
            .where(EmbeddingModel.provider == provider, EmbeddingModel.model == model)
            .order_by(EmbeddingModel.created_at.desc(), EmbeddingModel.id.desc())
        )
        found = self._session.scalars(query).all()
        return [one for one in found if not one.is_asked], [one for one in found if one.is_asked]

    def lock_models(self) -> None:
        """Let one transaction at a time add a model. The next one then sees it."""
        self._session.execute(text("SELECT pg_advisory_xact_lock(hashtext('embedding_models'))"))

    def make_newest(self, model: EmbeddingModel) -> None:
        """Make this dimension of a model the newest one again."""
        self.update(model, created_at=func.clock_timestamp())

    def register_model(
        self,
        provider: str,
        model: str,
        dimensions: int,
        *,
        storage: VectorType = VectorType.VECTOR,
        with_index: bool = True,
        is_asked: bool = False,
    ) -> EmbeddingModel:
        """Return the row of a model and dimension. The first call makes its partition and index.

        A bulk load passes `with_index=False` and builds the index at its end: see `VectorIndexes`.
        """
        key = {"provider": provider, "model": model, "dimensions": dimensions, "is_asked": is_asked}
        known = self._find(key)
        if known is None:
            self.lock_models()
            known = self._find(key)
        return known or self._add_model(key, storage, with_index=with_index)

    def store(
        self,
        model: EmbeddingModel,
        hashes: Sequence[bytes],
        vectors: "Sequence[Vector] | npt.NDArray[np.float32]",
    ) -> None:
        """Store a vector of the model's size for each hash. A vector that is there already stays.

        COPY BINARY is used, as turning floats into SQL text costs more than all the rest. It goes
        straight into the model's partition. Only if one of the vectors is there already, it goes
        into a temporary table first, which costs twice as much.
        """
        partition = partition_of(model)
        columns = "(model_id, content_hash, vector)"
        cursor = self._session.connection().connection.cursor()
        try:
            cursor.execute("SAVEPOINT vectors")
            try:
                copy_binary(cursor, f"{partition} {columns}", vector_rows(model, hashes, vectors))
            except psycopg2.errors.UniqueViolation:
                cursor.execute("ROLLBACK TO SAVEPOINT vectors")
                cursor.execute(f"CREATE TEMPORARY TABLE incoming (LIKE {partition}) ON COMMIT DROP")
                copy_binary(cursor, f"incoming {columns}", vector_rows(model, hashes, vectors))
                ordered = "SELECT model_id, content_hash, vector FROM incoming ORDER BY 2"
                cursor.execute(
                    f"INSERT INTO {partition} {columns} {ordered} ON CONFLICT DO NOTHING"
                )
                cursor.execute("DROP TABLE incoming")
            cursor.execute("RELEASE SAVEPOINT vectors")
        finally:
            cursor.close()

    def copy_vectors(self, keys: Mapping[bytes, bytes]) -> None:
        """Store the vectors of these contents, of all models, under other keys as well."""
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

    def find_stored(
        self, provider: str, model: str, hashes: Sequence[bytes], asked: int | None = None
    ) -> set[bytes]:
        """Return the contents that have a vector of this model's newest dimension, or the asked."""
        own, of_asked = self.sizes_of(provider, model)
        sizes = own if asked is None else [one for one in of_asked if one.dimensions == asked]
        known = next(iter(sizes), None)
        if known is None or not hashes:
            return set()
        vectors = TABLES[known.storage]
        wanted = func.any(literal(list(hashes), ArrayLiteral(LargeBinary())))
        query = select(vectors.c.content_hash).where(
            vectors.c.model_id == known.id, vectors.c.content_hash == wanted
        )
        return set(map(bytes, self._session.scalars(query)))

    def read(self, provider: str, model: str, hashes: Sequence[bytes]) -> dict[bytes, Vector]:
        """The vectors of these contents, of this model's newest dimension, as they were answered.

        None of a model whose numbers are kept in two bytes each.
        """
        import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

        known = self.find_model(provider, model)
        if known is None or known.storage != VectorType.VECTOR or not hashes:
            return {}
        vectors = TABLES[known.storage]
        wanted = func.any(literal(list(hashes), ArrayLiteral(LargeBinary())))
        query = select(vectors.c.content_hash, vectors.c.vector).where(
            vectors.c.model_id == known.id, vectors.c.content_hash == wanted
        )
        return {
            bytes(hash_): np.asarray(vector, np.float32)
            for hash_, vector in self._session.execute(query)
        }

    def count(self, model: EmbeddingModel) -> int:
        """Count the vectors of a model."""
        vectors = TABLES[model.storage]
        query = select(func.count()).where(vectors.c.model_id == model.id)
        return self._session.scalar(query) or 0

    def estimate(self, model: EmbeddingModel) -> float:
        """Estimate how many vectors a model has. Counting many of them takes seconds."""
        known = self._session.scalar(
            text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:partition)"),
            {"partition": partition_of(model)},
        )
        # It is -1 before the first ANALYZE, and may be wrong soon after it.
        return known if known is not None and known >= COUNTED else self.count(model)

    def _find(self, key: Mapping[str, Any]) -> EmbeddingModel | None:
        found = self.get_many(**key)
        return found[0] if found else None

    def _add_model(
        self, key: Mapping[str, Any], storage: VectorType, *, with_index: bool
    ) -> EmbeddingModel:
        row = self.create(**key, storage=storage)
        partition, parent = partition_of(row), TABLES[storage].name
        # Fixed names and integers only: DDL takes no parameters.
        self._session.execute(
            text(f"CREATE TABLE {partition} PARTITION OF {parent} FOR VALUES IN ({row.id})")
        )
        if with_index and index_type(row) is not None:
            self._session.execute(text(create_index(row)))
        return row


def vector_rows(
    model: EmbeddingModel,
    hashes: Sequence[bytes],
    vectors: "Sequence[Vector] | npt.NDArray[np.float32]",
) -> Iterator[memoryview]:
    """Make rows as COPY BINARY reads them (PostgreSQL manual, COPY; pgvector's vector_recv).

    About a megabyte is made at a time: all of them would take as much memory as the vectors. The
    next part overwrites the one before it.
    """
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    # In one order, so that two workers with the same contents don't deadlock.
    order = sorted(range(len(hashes)), key=hashes.__getitem__)
    dimensions = model.dimensions
    kind, size = (">f4", 4) if model.storage == VectorType.VECTOR else (">f2", 2)
    # Every row has the same size, so one structured array holds them.
    row = np.dtype(
        [
            ("fields", ">i2"),
            ("model_size", ">i4"),
            ("model", ">i4"),
            ("hash_size", ">i4"),
            ("hash", f"V{HASH_BYTES}"),
            ("vector_size", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("vector", kind, (dimensions,)),
        ]
    )
    at_once = max(1, SENT_AT_ONCE // row.itemsize)
    rows = np.empty(min(at_once, len(order)), dtype=row)
    rows["fields"] = 3
    rows["model_size"] = 4
    rows["model"] = model.id
    rows["hash_size"] = HASH_BYTES
    rows["vector_size"] = 4 + size * dimensions
    rows["dimensions"], rows["unused"] = dimensions, 0
    for first in range(0, len(order), at_once):
        places = order[first : first + at_once]
        part = rows[: len(places)]
        part["hash"] = np.frombuffer(b"".join(hashes[i] for i in places), dtype=f"V{HASH_BYTES}")
        numbers = part["vector"]
        # A number too large for 2 bytes becomes infinite, which PostgreSQL refuses. A unit vector
        # has no such number.
        with np.errstate(over="ignore"):
            for place, index in enumerate(places):
                numbers[place] = vectors[index]
        yield part.view(np.uint8).data
