"""A page of a run's items, read as columns.

PostgreSQL gives a page as one row, whose fields are the columns of the page. Row by row, what the
driver does for each took several times as long as PostgreSQL needs to find it.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from sqlalchemy.orm import Session

from promptstack.config.names import VectorType
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.wire_values import copied_row, load_jsonb

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VECTOR_HEAD = 4
"""Bytes before the numbers: how many there are, and two unused (pgvector's vector_send)."""
MOST_BYTES = 16_777_216
"""Of a page. What is beyond is left for the next one; the first row comes in any case."""

ANSWER = """
SELECT result::text FROM answers
WHERE content_hash = items.content_hash AND provider = %(provider)s AND model = %(model)s
"""
_VECTOR = """
SELECT {found} FROM {table}
WHERE content_hash = items.content_hash AND model_id = %(model_{number})s
"""
# Whatever PostgreSQL knows of the tables, it reads the items in order, stops at the limit, and
# looks each one's outcome and result up: it can't join subqueries that give a value. As a join, a
# page of a run whose tables were never analysed took seconds.
SUCCEEDED = """
SELECT position, custom_id, metadata::text AS metadata, {asked} AS asked, {found}
FROM items
WHERE run_id = %(run_id)s AND position > %(after)s AND position <= %(until)s
  AND (SELECT error_code IS NULL FROM outcomes
       WHERE run_id = items.run_id AND position = items.position)
ORDER BY position LIMIT %(limit)s
"""
_PAGE = """
SELECT max(bytes), string_agg(int4send(position), ''),
       string_agg(convert_to(coalesce(custom_id, ''), 'UTF8'), '\\x00'),
       convert_to('[' || string_agg(metadata, ',') || ']', 'UTF8'),
       string_agg(convert_to(coalesce('+' || asked, ''), 'UTF8'), '\\x00'), {columns}
FROM (SELECT *, sum({size}) OVER (ROWS UNBOUNDED PRECEDING) AS bytes, {size} AS size
      FROM ({items}) AS items) AS sized
WHERE bytes - size < %(most_bytes)s
"""
JSON = "convert_to('[' || string_agg(coalesce({name}, 'null'), ',') || ']', 'UTF8')"
LAST = 2**31 - 1
"""The last position there can be."""


@dataclass(frozen=True, slots=True)
class PageOf:
    """Which items a page has."""

    run_id: UUID
    after: int
    limit: int
    until: int | None = None
    with_text: bool = False


def asked_vectors(
    models: Sequence[EmbeddingModel], *, with_vector: bool
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Return what asks for vectors: the queries of one each, two columns each, and values."""
    sources, columns = [], []
    for number, model in enumerate(models):
        found = f"{model.storage}_send(vector)" if with_vector else "'\\x01'::bytea"
        table = TABLES[model.storage].name
        sources.append(_VECTOR.format(found=found, table=table, number=number))
        has_one = f"CASE WHEN found_{number} IS NULL THEN '\\x00'::bytea ELSE '\\x01' END"
        columns += [f"string_agg({has_one}, '')", f"string_agg(found_{number}, '')"]
    return sources, columns, {f"model_{number}": model.id for number, model in enumerate(models)}


class Columns:
    """A page as PostgreSQL gives it."""

    def __init__(
        self,
        session: Session,
        wanted: PageOf,
        sources: Sequence[str],
        columns: Sequence[str],
        values: Mapping[str, Any],
        *,
        of_items: str = SUCCEEDED,
        found_as: str = "({found})",
        sized: Sequence[str] = (),
    ) -> None:
        """Take the queries of results, and the columns made of them.

        `of_items` is the query of the items, `found_as` how it asks for a result, and `sized` are
        more columns of it that count in a page's bytes.
        """
        self._wanted = wanted
        asked = "coalesce(text, messages::text)" if wanted.with_text else "NULL::text"
        found = [
            f"{found_as.format(found=source)} AS found_{number}"
            for number, source in enumerate(sources)
        ]
        sizes = [f"coalesce(octet_length(found_{number}), 0)" for number in range(len(sources))]
        sizes += ["octet_length(metadata)", "coalesce(octet_length(asked), 0)"]
        sizes += [f"coalesce(octet_length({name}), 0)" for name in sized]
        items = of_items.format(asked=asked, found=", ".join(found) or "NULL AS found")
        query = _PAGE.format(items=items, columns=", ".join(columns), size=" + ".join(sizes))
        given = {
            "run_id": str(wanted.run_id),
            "after": wanted.after,
            "until": LAST if wanted.until is None else wanted.until,
            "limit": wanted.limit,
            "most_bytes": MOST_BYTES,
        }
        cursor = session.connection().connection.cursor()
        try:
            fields = copied_row(cursor, query, {**given, **values})
        finally:
            cursor.close()
        size, self._positions, self._ids, self._metadata, self._asked, *self._fields = fields
        self.bytes = int.from_bytes(size or b"")
        self.count = len(self._positions or b"") // 4

    def field(self, number: int) -> memoryview:
        """Return a column that was asked for."""
        return self._fields[number] or memoryview(b"")

    def json(self, number: int) -> list[Any]:
        """Return a column that is JSON."""
        return list(load_jsonb(bytes(self.field(number))))

    def texts(self) -> Sequence[str | None]:
        """Return what was sent, where it was asked for."""
        if not self._wanted.with_text:
            return [None] * self.count
        texts = bytes(self._asked or b"").decode().split("\0")
        return [text[1:] if text else None for text in texts]

    def items(self) -> tuple[Sequence[int], Sequence[str], Sequence[Any]]:
        """Return the items' positions, ids and metadata."""
        positions = struct.unpack(f">{self.count}i", self._positions or b"")
        ids = bytes(self._ids or b"").decode().split("\0")
        return positions, ids, load_jsonb(bytes(self._metadata or b"[]"))

    def more_after(self, last: int) -> int | None:
        """Return the last position if there may be more; None at the end."""
        is_cut = self.count == self._wanted.limit or self.bytes >= MOST_BYTES
        return last if is_cut else None

    def vectors(
        self, first: int, models: Sequence[EmbeddingModel], *, with_vector: bool = True
    ) -> tuple[list[Any], list[bool]]:
        """Return the vectors in the columns from the `first` on, and which items have one.

        Each is of the first model that has one.
        """
        import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

        vectors: list[Any] = [None] * self.count
        is_there = np.zeros(self.count, np.bool_)
        for number, model in enumerate(models if self.count else ()):
            its_own = np.frombuffer(self.field(first + 2 * number), np.bool_)
            if with_vector:
                matrix = _matrix(self.field(first + 2 * number + 1), model)
                for at, vector in zip(np.flatnonzero(its_own).tolist(), matrix, strict=True):
                    if vectors[at] is None:
                        vectors[at] = vector
            is_there |= its_own
        return vectors, is_there.tolist()


def _matrix(sent: memoryview, model: EmbeddingModel) -> "npt.NDArray[np.float32]":
    """Read vectors in the form of their table's `send`."""
    import numpy as np  # noqa: PLC0415

    kind = ">f4" if model.storage == VectorType.VECTOR else ">f2"
    layout = [("head", f"V{VECTOR_HEAD}"), ("numbers", kind, (model.dimensions,))]
    return np.frombuffer(sent, np.dtype(layout))["numbers"].astype(np.float32)
