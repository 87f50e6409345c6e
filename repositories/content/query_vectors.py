"""Vectors of queries, so that the same query is not paid for twice."""

from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel, QueryVector

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PRUNED_AT_ONCE = 1_000


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
