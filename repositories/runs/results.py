"""Results and failures of runs, read in pages in the order of their items."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import (
    ColumnElement,
    FromClause,
    LargeBinary,
    Text,
    cast,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.orm import Session

from promptstack.config.names import VectorType
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.models import EmbeddingModel
from promptstack.repositories.run_models import Answer, Item, Outcome

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VECTOR_HEAD = 4
"""Bytes before the numbers: how many there are, and two unused (pgvector's vector_send)."""


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
class FailedItem:
    """An item without a result, and why."""

    position: int
    custom_id: str | None
    code: str
    error: str
    detail: str | None
    metadata: dict[str, JsonValue]


class RunResultRepository:
    """Reads items together with their vectors, answers or errors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def vectors(
        self,
        run_id: UUID,
        models: Sequence[EmbeddingModel],
        after: int,
        limit: int,
        *,
        with_text: bool = False,
        with_vector: bool = True,
        until: int | None = None,
    ) -> tuple[list[Produced], int | None]:
        """Return the next vectors after a position, each of the first model that has one.

        And the position after which there may be more; None at the end. Without `with_vector` the
        same items come without them.
        """
        found = [_sent_vector(model) if with_vector else _has_vector(model) for model in models]
        rows, more_after = self._page(run_id, after, until, found, limit, with_text=with_text)
        vectors = [
            Produced(
                row[0],
                row[1],
                row[2],
                row[3],
                _first_vector(row[4:], models) if with_vector else None,
                None,
            )
            for row in rows
        ]
        return vectors, more_after

    def count_vectors(
        self, run_id: UUID, model: EmbeddingModel, *, after: int = 0, until: int | None = None
    ) -> int:
        """Count the succeeded items of a run that have a vector of this model."""
        vectors = TABLES[model.storage]
        end = [] if until is None else [Item.position <= until]
        query = (
            select(func.count())
            .select_from(Item)
            .join(Outcome, _its_outcome())
            .join(vectors, _its_vector(vectors, model))
            .where(Item.run_id == run_id, Item.position > after, *end, Outcome.error_code.is_(None))
        )
        return self._session.scalar(query) or 0

    def answers(
        self,
        run_id: UUID,
        provider: str,
        model: str,
        after: int,
        limit: int,
        *,
        with_text: bool = False,
        until: int | None = None,
    ) -> tuple[list[Produced], int | None]:
        """Return the next answers after a position, and as `vectors` where there may be more."""
        answer = select(Answer.result).where(
            Answer.content_hash == Item.content_hash,
            Answer.provider == provider,
            Answer.model == model,
        )
        found = [answer.correlate(Item).scalar_subquery()]
        rows, more_after = self._page(run_id, after, until, found, limit, with_text=with_text)
        answers = [Produced(row[0], row[1], row[2], row[3], None, row[4]) for row in rows]
        return answers, more_after

    def failures(
        self, run_id: UUID, after: int, limit: int, *, until: int | None = None
    ) -> list[FailedItem]:
        """Return the next failures after a position."""
        end = [] if until is None else [Outcome.position <= until]
        rows = self._session.execute(
            select(
                Item.position,
                Item.custom_id,
                Outcome.error_code,
                func.coalesce(Outcome.error, ""),
                Outcome.detail,
                Item.attributes,
            )
            .join(Outcome, _its_outcome())
            .where(
                Outcome.run_id == run_id,
                Outcome.position > after,
                *end,
                Outcome.error_code.is_not(None),
            )
            .order_by(Outcome.position)
            .limit(limit)
        )
        return [FailedItem(*row) for row in rows]

    def _page(
        self,
        run_id: UUID,
        after: int,
        until: int | None,
        found: Sequence[ColumnElement[Any]],
        limit: int,
        *,
        with_text: bool,
    ) -> tuple[Sequence[Sequence[Any]], int | None]:
        """Return succeeded items for which one of `found` is there, and these after their fields.

        And the position after which there may be more. Whatever PostgreSQL knows of the tables, it
        reads the items in order, stops at the limit, and looks each one's outcome and result up:
        it can't join subqueries that give a value. As a join, a page of a run whose tables were
        never analysed took seconds.
        """
        asked: ColumnElement[Any] = (
            func.coalesce(Item.text, cast(Item.messages, Text))
            if with_text
            else literal_column("NULL")
        )
        has_succeeded = (
            select(Outcome.error_code.is_(None)).where(_its_outcome()).correlate(Item)
        ).scalar_subquery()
        end = [] if until is None else [Item.position <= until]
        query = (
            select(Item.position, Item.custom_id, Item.attributes, asked, *found)
            .where(Item.run_id == run_id, Item.position > after, *end, has_succeeded)
            .order_by(Item.position)
            .limit(limit)
        )
        rows = self._session.execute(query).all()
        more_after = rows[-1][0] if len(rows) == limit else None
        # Of an item that is there without its result, as when that was deleted, nothing is shown.
        return [row for row in rows if any(one is not None for one in row[4:])], more_after


def _sent_vector(model: EmbeddingModel) -> ColumnElement[Any]:
    vectors = TABLES[model.storage].alias()
    sent = getattr(func, f"{model.storage}_send")(vectors.c.vector, type_=LargeBinary)
    return select(sent).where(_its_vector(vectors, model)).correlate(Item).scalar_subquery()


def _has_vector(model: EmbeddingModel) -> ColumnElement[Any]:
    vectors = TABLES[model.storage].alias()
    return select(true()).where(_its_vector(vectors, model)).correlate(Item).scalar_subquery()


def _its_vector(vectors: FromClause, model: EmbeddingModel) -> ColumnElement[bool]:
    return (vectors.c.content_hash == Item.content_hash) & (vectors.c.model_id == model.id)


def _first_vector(
    sent: Sequence[bytes | None], models: Sequence[EmbeddingModel]
) -> "npt.NDArray[np.float32]":
    """Read the first vector that is there, in the form of its table's `send`."""
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    content, model = next((one, of) for one, of in zip(sent, models, strict=True) if one)
    kind = ">f4" if model.storage == VectorType.VECTOR else ">f2"
    return np.frombuffer(content, dtype=kind, offset=VECTOR_HEAD).astype(np.float32)


def _its_outcome() -> ColumnElement[bool]:
    return (Outcome.run_id == Item.run_id) & (Outcome.position == Item.position)
