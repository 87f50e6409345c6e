"""Vectors of queries, so that the same query is not paid for twice."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, delete, func, literal, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel, QueryVector
from promptstack.repositories.wire_values import ArrayLiteral, BatchStatement

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PRUNED_AT_ONCE = 1_000


class KeptVector(NamedTuple):
    """A vector that was paid for."""

    vector: bytes
    """Its numbers, as little-endian float32."""
    tokens: int | None
    """Of its input; None where nobody has counted them."""


class QueryVectorRepository:
    """One for each model and content."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, model: EmbeddingModel, content_hash: bytes) -> "npt.NDArray[np.float32] | None":
        """The vector of a content by this model: of a query, a chunk or an item that was paid for.

        None where there is none of this size.
        """
        import numpy as np  # noqa: PLC0415 - it takes 16 MB, and few processes search

        kept = self._session.scalar(
            select(QueryVector.vector).where(
                QueryVector.provider == model.provider,
                QueryVector.model == model.model,
                QueryVector.content_hash == content_hash,
            )
        )
        if kept is not None and len(kept) == 4 * model.dimensions:
            return np.frombuffer(kept, "<f4").astype(np.float32)
        vectors = TABLES[model.storage]
        stored = self._session.scalar(
            select(vectors.c.vector).where(
                vectors.c.model_id == model.id, vectors.c.content_hash == content_hash
            )
        )
        return None if stored is None else np.asarray(stored, np.float32)

    def read(self, provider: str, model: str, hashes: Sequence[bytes]) -> dict[bytes, KeptVector]:
        """The vectors of these contents that are kept."""
        query = select(QueryVector.content_hash, QueryVector.vector, QueryVector.tokens)
        rows = self._session.execute(query.where(*_these(provider, model, hashes)))
        return {bytes(row[0]): KeptVector(bytes(row[1]), row[2]) for row in rows}

    def find_kept(self, provider: str, model: str, hashes: Sequence[bytes]) -> set[bytes]:
        """Which of these contents have a vector that is kept."""
        query = select(QueryVector.content_hash).where(*_these(provider, model, hashes))
        return set(map(bytes, self._session.scalars(query)))

    def keep_all(self, provider: str, model: str, kept: Mapping[bytes, KeptVector]) -> None:
        """Keep these vectors, by their contents."""
        rows = [
            # In one order, so that two jobs with the same contents don't deadlock.
            {"hash": hash_, "vector": kept[hash_].vector, "tokens": kept[hash_].tokens}
            for hash_ in sorted(kept)
        ]
        _KEEP.run(self._session, rows, provider=provider, model=model)

    def keep(
        self, provider: str, model: str, content_hash: bytes, vector: "npt.NDArray[np.float32]"
    ) -> None:
        """Keep the vector of a query."""
        new = insert(QueryVector).values(
            provider=provider,
            model=model,
            content_hash=content_hash,
            vector=vector.astype("<f4").tobytes(),
        )
        self._session.execute(
            new.on_conflict_do_update(
                index_elements=["provider", "model", "content_hash"],
                set_={"vector": new.excluded.vector, "created_at": func.now()},
            )
        )

    def prune(self, seconds: float) -> int:
        """Delete some that are older. Returns how many."""
        old = (
            select(QueryVector.content_hash)
            .where(QueryVector.created_at < func.now() - timedelta(seconds=seconds))
            .limit(PRUNED_AT_ONCE)
        )
        is_old = QueryVector.created_at < func.now() - timedelta(seconds=seconds)
        return change_rows(
            self._session, delete(QueryVector).where(QueryVector.content_hash.in_(old), is_old)
        )


def _these(provider: str, model: str, hashes: Sequence[bytes]) -> tuple[ColumnElement[bool], ...]:
    wanted = func.any(literal(list(hashes), ArrayLiteral(LargeBinary())))
    return (
        QueryVector.provider == provider,
        QueryVector.model == model,
        QueryVector.content_hash == wanted,
    )


_KEEP = BatchStatement(
    "hash bytea, vector bytea, tokens integer",
    """
INSERT INTO query_vectors (provider, model, content_hash, vector, tokens)
SELECT :provider, :model, hash, vector, tokens FROM given
ON CONFLICT (provider, model, content_hash) DO UPDATE
SET vector = excluded.vector, tokens = excluded.tokens, created_at = now()
RETURNING 1
""",
)
