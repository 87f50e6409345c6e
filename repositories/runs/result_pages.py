"""Pages of results, read as columns.

PostgreSQL gives a page as one row, whose fields are the columns of the page. Row by row, what the
driver does for each took several times as long as PostgreSQL needs to find it.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import JsonValue
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

_ANSWER = """
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
_ITEMS = """
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
LAST = 2**31 - 1
"""The last position there can be."""


@dataclass(frozen=True, slots=True)
class Produced:
    """A result: a vector or an answer, and the item it belongs to."""

    position: int
    custom_id: str
    metadata: dict[str, JsonValue]
    text: str | None
    """What was sent. Written only when asked for."""
    vector: "npt.NDArray[np.float32] | None"
    answer: dict[str, JsonValue] | None
    """`text`, `model`, `finish_reason`, `input_tokens`, `output_tokens` and whatever else; `json`
    where the answer was to be JSON."""


@dataclass(frozen=True, slots=True)
class PageOf:
    """Which items a page has."""

    run_id: UUID
    after: int
    limit: int
    until: int | None = None
    with_text: bool = False


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in the order of their items."""

    rows: list[Produced]
    """Of an item that is there without its result, as when that was deleted, there is none."""
    more_after: int | None
    """The position after which there may be more; None at the end."""
    bytes: int
    """Of what was read, about."""


def read_answers(session: Session, wanted: PageOf, provider: str, model: str) -> ResultPage:
    """Return the next answers after a position."""
    columns = "convert_to('[' || string_agg(coalesce(found_0, 'null'), ',') || ']', 'UTF8')"
    values = {"provider": provider, "model": model}
    page = _Columns(session, wanted, [_ANSWER], [columns], values)
    answers = page.json(0) if page.count else []
    return page.of([None] * page.count, answers, [one is not None for one in answers])


def read_vectors(
    session: Session, wanted: PageOf, models: Sequence[EmbeddingModel], *, with_vector: bool
) -> ResultPage:
    """Return the next vectors after a position, each of the first model that has one.

    Without `with_vector` the same items come without them.
    """
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    sources, columns = [], []
    for number, model in enumerate(models):
        found = f"{model.storage}_send(vector)" if with_vector else "'\\x01'::bytea"
        table = TABLES[model.storage].name
        sources.append(_VECTOR.format(found=found, table=table, number=number))
        has_one = f"CASE WHEN found_{number} IS NULL THEN '\\x00'::bytea ELSE '\\x01' END"
        columns += [f"string_agg({has_one}, '')", f"string_agg(found_{number}, '')"]
    values = {f"model_{number}": model.id for number, model in enumerate(models)}
    page = _Columns(session, wanted, sources, columns, values)
    vectors: list[Any] = [None] * page.count
    is_there = np.zeros(page.count, np.bool_)
    for number, model in enumerate(models if page.count else ()):
        its_own = np.frombuffer(page.field(2 * number), np.bool_)
        if with_vector:
            matrix = _matrix(page.field(2 * number + 1), model)
            for at, vector in zip(np.flatnonzero(its_own).tolist(), matrix, strict=True):
                if vectors[at] is None:
                    vectors[at] = vector
        is_there |= its_own
    return page.of(vectors, [None] * page.count, is_there.tolist())


class _Columns:
    """A page as PostgreSQL gives it."""

    def __init__(
        self,
        session: Session,
        wanted: PageOf,
        sources: Sequence[str],
        columns: Sequence[str],
        values: Mapping[str, Any],
    ) -> None:
        self._wanted = wanted
        asked = "coalesce(text, messages::text)" if wanted.with_text else "NULL::text"
        found = [f"({source}) AS found_{number}" for number, source in enumerate(sources)]
        sizes = [f"coalesce(octet_length(found_{number}), 0)" for number in range(len(sources))]
        sizes += ["octet_length(metadata)", "coalesce(octet_length(asked), 0)"]
        items = _ITEMS.format(asked=asked, found=", ".join(found))
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

    def of(
        self, vectors: Sequence[Any], answers: Sequence[Any], has_one: Sequence[object]
    ) -> ResultPage:
        """Return the page with these results; `has_one` says which of its items have any."""
        if not self.count or self._positions is None:
            return ResultPage([], None, 0)
        positions = struct.unpack(f">{self.count}i", self._positions)
        ids = bytes(self._ids or b"").decode().split("\0")
        metadata = load_jsonb(bytes(self._metadata or b"[]"))
        asked: Sequence[str | None] = [None] * self.count
        if self._wanted.with_text:
            texts = bytes(self._asked or b"").decode().split("\0")
            asked = [text[1:] if text else None for text in texts]
        columns = zip(positions, ids, metadata, asked, vectors, answers, strict=True)
        rows = [Produced(*row) for row, is_there in zip(columns, has_one, strict=True) if is_there]
        is_cut = self.count == self._wanted.limit or self.bytes >= MOST_BYTES
        return ResultPage(rows, positions[-1] if is_cut else None, self.bytes)


def _matrix(sent: memoryview, model: EmbeddingModel) -> "npt.NDArray[np.float32]":
    """Read vectors in the form of their table's `send`."""
    import numpy as np  # noqa: PLC0415

    kind = ">f4" if model.storage == VectorType.VECTOR else ">f2"
    layout = [("head", f"V{VECTOR_HEAD}"), ("numbers", kind, (model.dimensions,))]
    return np.frombuffer(sent, np.dtype(layout))["numbers"].astype(np.float32)
