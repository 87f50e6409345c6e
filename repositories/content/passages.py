"""Search for passages: chunks of documents, and items of runs, by their vectors.

What is asked for lies in some collections or in one run, and may be filtered. Where that is little,
all of it is compared. Else the vectors of everybody are read in the order of their distance, by
their index, until enough are found. An index scan gives up where few of those that it meets are
among what was asked for: then all of that is compared, too. So a search has as many matches as
there are, up to its limit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pgvector.sqlalchemy import HALFVEC, VECTOR
from sqlalchemy import Row, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from promptstack.repositories.content.vector_tables import TABLES, index_name, index_type
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.wire_values import array_literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

COMPARED = 5_000
"""So many contents are compared in about 0.1 s, and the result is exact (benchmarks/search.py)."""
Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class SearchScope:
    """What is searched: documents and runs of these collections, or the items of one run."""

    collections: Sequence[UUID] = ()
    run_id: UUID | None = None
    source: str | None = None
    where: Mapping[str, Any] = field(default_factory=dict)
    """Metadata that a document or an item must have."""

    @property
    def values(self) -> dict[str, Any]:
        """The parameters of its conditions."""
        return {
            "collections": array_literal(list(self.collections)),
            "run": self.run_id,
            "source": self.source,
            "where": dict(self.where),
        }

    @property
    def chunks(self) -> str:
        """The rows of chunks in it."""
        conditions = ["d.collection_id = ANY (CAST(:collections AS uuid[]))"]
        if self.source is not None:
            conditions.append("d.source = :source")
        if self.where:
            conditions.append("d.metadata @> :where")
        if self.run_id is not None:
            conditions = ["false"]
        given = " AND ".join(conditions)
        return f"FROM chunks AS c JOIN documents AS d ON d.id = c.document_id WHERE {given}"

    @property
    def items(self) -> str:
        """The rows of items in it."""
        conditions = ["r.collection_id = ANY (CAST(:collections AS uuid[]))"]
        if self.run_id is not None:
            conditions = ["r.id = :run"]
        if self.source is not None:
            conditions.append(f"{_SOURCE_OF_ITEM} = :source")
        if self.where:
            conditions.append("i.metadata @> :where")
        given = " AND ".join(conditions)
        return (
            "FROM items AS i JOIN runs AS r ON r.id = i.run_id WHERE r.kind = 'embedding' "
            f"AND i.content_hash IS NOT NULL AND i.text IS NOT NULL AND {given}"
        )


@dataclass(frozen=True)
class Match:
    """A passage that search found: of a document, or an item of a run."""

    document_id: UUID | None
    run_id: UUID | None
    collection_id: UUID
    source: str
    """Of an item: the source in its metadata, else its `custom_id`."""
    position: int
    start: int
    text: str
    attributes: Mapping[str, Any]
    """Its metadata."""
    score: float
    """Cosine similarity, 1 is the same direction. Of a hybrid search, a sum over two ranks."""
    highlights: Spans = ()
    """Where words of the query stand in the text: from which character, and before which."""

    @property
    def key(self) -> tuple[UUID | None, int]:
        """Which passage it is."""
        return (self.document_id or self.run_id, self.position)


class PassageRepository:
    """Finds the passages nearest to a vector."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def search(
        self,
        model: EmbeddingModel,
        vector: "npt.NDArray[np.float32]",
        limit: int,
        scope: SearchScope,
        *,
        compared: int = COMPARED,
    ) -> list[Match]:
        """Return the passages nearest to `vector`, of shape (dimensions,), best first.

        A passage is returned for each document that has it. An item is returned once of those with
        the same text, that of the newest run, and not where a document has this text, too.
        """
        given = {**scope.values, "limit": limit, "model": model.id, "vector": vector}
        if self._has_index(model) and self._count(scope, compared + 1) > compared:
            self._search_widely(limit)
            rows = self._session.execute(_by_index(model, scope), given).all()
            if len(rows) == limit:
                return match_rows(rows)
        return match_rows(self._session.execute(_by_comparing(model, scope), given).all())

    def _has_index(self, model: EmbeddingModel) -> bool:
        """Whether the vectors can be read by their distance: not while many of them are stored."""
        if index_type(model) is None:
            return False
        return bool(self._session.scalar(_HAS_INDEX, {"name": index_name(model)}))

    def _count(self, scope: SearchScope, most: int) -> int:
        """Count the passages of a scope, up to some."""
        parts = (f"(SELECT 1 {part} LIMIT :most)" for part in (scope.chunks, scope.items))
        counted = f"SELECT count(*) FROM ({' UNION ALL '.join(parts)}) AS counted"  # noqa: S608 - ours
        return self._session.scalar(_typed(counted), {**scope.values, "most": most}) or 0

    def _search_widely(self, limit: int) -> None:
        # pgvector's 40 misses one neighbour in a hundred; 200 costs 2 ms more (20,000 vectors).
        self._session.execute(text(f"SET LOCAL hnsw.ef_search = {min(max(200, 4 * limit), 1_000)}"))
        # Without it, an index scan ends at ef_search rows, of which some may not be asked for.
        self._session.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))


def match_rows(rows: Sequence[Row[Any]]) -> list[Match]:
    """Rows with the columns of passages, and a score, as matches."""
    return [
        Match(**{**row._mapping, "start": _start_in(row.attributes) if row.run_id else row.start})
        for row in rows
    ]


def _start_in(attributes: Mapping[str, Any]) -> int:
    """Return where a chunk starts in its text. A caller's field of this name may be anything."""
    start = attributes.get("start")
    return start if type(start) is int else 0


_SOURCE_OF_ITEM = "coalesce(i.metadata ->> 'source', i.custom_id)"
CHUNK_COLUMNS = """
    c.document_id, CAST(NULL AS uuid) AS run_id, d.collection_id, d.source, c.position, c.start,
    c.text, coalesce(d.metadata, '{}') AS attributes"""
_ITEM_COLUMNS = f"""
    CAST(NULL AS uuid), i.run_id, r.collection_id, {_SOURCE_OF_ITEM}, i.position, 0, i.text,
    i.metadata"""
_HAS_INDEX = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")


def _typed(statement: str) -> Any:
    where = bindparam("where", type_=JSONB)
    return text(statement).bindparams(*([where] if ":where" in statement else []))


def _with_vector(model: EmbeddingModel, statement: str) -> Any:
    kind = HALFVEC if index_type(model) == "halfvec" else VECTOR
    vector = bindparam("vector", type_=kind(model.dimensions))
    return _typed(statement).bindparams(vector)


def _distance(model: EmbeddingModel) -> str:
    """The distance of a vector `v`, as the model's index has it."""
    kind = f"{index_type(model) or 'vector'}({model.dimensions})"
    return f"(v.vector::{kind} <=> CAST(:vector AS {kind}))"


def _by_index(model: EmbeddingModel, scope: SearchScope) -> Any:
    """Read all vectors by their distance, until enough of them are of the scope."""
    distance = _distance(model)
    same = "content_hash = v.content_hash"
    return _with_vector(
        model,
        f"""
        SELECT found.*, 1 - {distance} AS score
        FROM {TABLES[model.storage].name} AS v CROSS JOIN LATERAL (
            SELECT {CHUNK_COLUMNS} {scope.chunks} AND c.{same}
            UNION ALL (
                SELECT {_ITEM_COLUMNS} {scope.items} AND i.{same}
                    AND NOT EXISTS (SELECT {scope.chunks} AND c.{same})
                ORDER BY i.run_id DESC, i.position LIMIT 1
            )
        ) AS found
        WHERE v.model_id = :model ORDER BY {distance} LIMIT :limit
        """,  # noqa: S608 - names of our own
    )


def _by_comparing(model: EmbeddingModel, scope: SearchScope) -> Any:
    """Compare all that is in the scope.

    Each vector is looked up by its key, which OFFSET demands: PostgreSQL may think it quicker to
    read all vectors of everybody in the order of their keys. Those of zeros have no direction.
    """
    return _with_vector(
        model,
        f"""
        WITH candidates AS MATERIALIZED (
            SELECT c.content_hash, c.id AS chunk, CAST(NULL AS uuid) AS run_id, 0 AS position
            {scope.chunks}
            UNION ALL (
                SELECT DISTINCT ON (i.content_hash)
                    i.content_hash, CAST(NULL AS bigint), i.run_id, i.position
                {scope.items}
                    AND NOT EXISTS (SELECT {scope.chunks} AND c.content_hash = i.content_hash)
                ORDER BY i.content_hash, i.run_id DESC, i.position
            )
        ), nearest AS MATERIALIZED (
            SELECT candidates.*, distance FROM candidates CROSS JOIN LATERAL (
                SELECT {_distance(model)} AS distance FROM {TABLES[model.storage].name} AS v
                WHERE v.model_id = :model AND v.content_hash = candidates.content_hash OFFSET 0
            ) AS its
            WHERE distance <> 'NaN' ORDER BY distance LIMIT :limit
        )
        SELECT found.*, 1 - distance AS score
        FROM nearest CROSS JOIN LATERAL (
            SELECT {CHUNK_COLUMNS}
            FROM chunks AS c JOIN documents AS d ON d.id = c.document_id
            WHERE c.id = nearest.chunk
            UNION ALL
            SELECT {_ITEM_COLUMNS} FROM items AS i JOIN runs AS r ON r.id = i.run_id
            WHERE i.run_id = nearest.run_id AND i.position = nearest.position
        ) AS found
        ORDER BY distance, nearest.content_hash
        """,  # noqa: S608 - names of our own
    )
