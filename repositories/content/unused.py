"""Contents of which a chunk or an item was deleted: vectors that nobody else uses are deleted.

A vector belongs to a content, which other chunks and items may have. So who deletes one of these
notes its content here, in the same transaction, and a batch of what is noted is judged later. It
must not happen that a vector is deleted which somebody has just found and relies on. So who adds
chunks or starts a run holds the lock `USES` from before it looks for vectors, and so does who
deletes some, alone.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, LargeBinary, func, select, text
from sqlalchemy.orm import Session

from promptstack.config.names import VectorType
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import UnusedContent
from promptstack.repositories.wire_values import array_literal

USES = "uses of contents"
"""An advisory lock."""
REPLACED_FOR = timedelta(days=7)
"""A text that a document had before may come back, and is not paid for again then."""
RESERVED_FOR = timedelta(minutes=1)
"""When to look again at a content that a job embeds just now."""


def shared_lock() -> ColumnElement[Any]:
    """The expression that takes the lock `USES` together with others, until the commit."""
    return func.pg_advisory_xact_lock_shared(func.hashtext(USES))


class UnusedContentRepository:
    """Notes contents, and deletes vectors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def count_of(self, collections: Sequence[UUID]) -> dict[UUID, int]:
        """How many contents of collections that are being deleted are left to judge."""
        rows = self._session.execute(
            select(UnusedContent.collection_id, func.count())
            .where(UnusedContent.collection_id.in_(collections))
            .group_by(UnusedContent.collection_id)
        )
        return {collection: count for collection, count in rows if collection is not None}

    def delete_vectors(self, limit: int) -> int:
        """Judge up to `limit` contents that are due. Returns how many were judged.

        Of those that no chunk and no item of a run has, the vectors are deleted, of all models.
        """
        self._session.execute(select(func.pg_advisory_xact_lock(func.hashtext(USES))))
        due = self._hashes(_DUE, limit=limit)
        if not due:
            return 0
        given = array_literal(due)
        reserved = set(self._hashes(_POSTPONE, hashes=given, wait=RESERVED_FOR))
        judged = [one for one in due if one not in reserved]
        used = set(self._hashes(_USED, hashes=array_literal(judged)))
        unused = array_literal([one for one in judged if one not in used])
        for storage, vectors in TABLES.items():
            self._session.execute(
                text(_DELETE.format(vectors=vectors.name)),
                {"hashes": unused, "storage": VectorType(storage)},
            )
        self._session.execute(_FORGET, {"hashes": array_literal(judged)})
        return len(due)

    def _hashes(self, statement: Any, **given: Any) -> list[bytes]:
        return list(map(bytes, self._session.scalars(statement, given)))


_HASHES = "ANY (CAST(:hashes AS bytea[]))"
_DUE = text(
    "SELECT content_hash FROM unused_contents WHERE due_at <= now() ORDER BY due_at LIMIT :limit "
    "FOR UPDATE SKIP LOCKED"
).columns(content_hash=LargeBinary)
# The vectors of a reserved content are about to be stored; nobody else would note them.
_POSTPONE = text(
    f"""
    UPDATE unused_contents SET due_at = now() + :wait
    WHERE content_hash = {_HASHES}
        AND content_hash IN (SELECT content_hash FROM reservations WHERE content_hash = {_HASHES})
    RETURNING content_hash
    """  # noqa: S608 - names of our own
).columns(content_hash=LargeBinary)
_USED = text(
    f"""
    SELECT content_hash FROM chunks WHERE content_hash = {_HASHES}
    UNION
    SELECT content_hash FROM items JOIN runs ON runs.id = items.run_id
    WHERE content_hash IS NOT NULL AND content_hash = {_HASHES}
    """  # noqa: S608 - names of our own
).columns(content_hash=LargeBinary)
_DELETE = """
    DELETE FROM {vectors} USING embedding_models
    WHERE {vectors}.model_id = embedding_models.id AND embedding_models.storage = :storage
        AND {vectors}.content_hash = ANY (CAST(:hashes AS bytea[]))
"""
_FORGET = text(f"DELETE FROM unused_contents WHERE content_hash = {_HASHES}")  # noqa: S608

NOTE = """
    INSERT INTO unused_contents (content_hash, due_at, collection_id)
    SELECT DISTINCT content_hash, now() + CAST(:wait AS interval), CAST(:collection AS uuid)
    FROM gone WHERE content_hash IS NOT NULL ORDER BY 1
    ON CONFLICT (content_hash) DO UPDATE SET
        due_at = least(unused_contents.due_at, excluded.due_at),
        collection_id = coalesce(excluded.collection_id, unused_contents.collection_id)
"""
"""Notes the contents of the table `gone` for after `:wait`; `:collection` is where they were."""
