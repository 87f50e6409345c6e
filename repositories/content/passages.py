"""Search for passages by their vectors: chunks of documents, and items of runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy import func, select, text, true
from sqlalchemy.orm import Session

from promptstack.repositories.content.vector_tables import TABLES, indexed_vector
from promptstack.repositories.models import Chunk, Document, EmbeddingModel
from promptstack.repositories.run_models import Item

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


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


class PassageRepository:
    """Finds the passages nearest to a vector."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def search(
        self, model: EmbeddingModel, vector: "npt.NDArray[np.float32]", limit: int
    ) -> list[Match]:
        """Return the chunks nearest to `vector`, of shape (dimensions,), best first."""
        self._search_widely(limit)
        vectors = TABLES[model.storage]
        distance = indexed_vector(model).cosine_distance(vector)
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
        vector: "npt.NDArray[np.float32]",
        limit: int,
        where: Mapping[str, Any],
    ) -> list[Match]:
        """Return the items of runs nearest to `vector` whose metadata contain `where`.

        A text that several items have is returned once.
        """
        self._search_widely(limit)
        vectors = TABLES[model.storage]
        distance = indexed_vector(model).cosine_distance(vector)
        named = [Item.attributes.contains(dict(where))] if where else []
        # Of items with the same text, the one of the newest run.
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
            # The index scan gives up if few items match. Then all that match are compared.
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


def _start_in(attributes: Mapping[str, Any]) -> int:
    """Return where a chunk starts in its text. A caller's field of this name may be anything."""
    start = attributes.get("start")
    return start if type(start) is int else 0
