"""Results and failures of runs, read in pages in the order of their items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy import ColumnElement, FromClause, func, select
from sqlalchemy.orm import Session

from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.run_models import Item, Outcome
from promptstack.repositories.runs.line_pages import LineError, LinePage, RunLine, read_lines
from promptstack.repositories.runs.page_columns import PageOf
from promptstack.repositories.runs.result_pages import (
    Produced,
    ResultPage,
    read_answers,
    read_vectors,
)

__all__ = [
    "FailedItem",
    "LineError",
    "LinePage",
    "PageOf",
    "Produced",
    "ResultPage",
    "RunLine",
    "RunResultRepository",
    "Unanswered",
]


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item without a result, and why."""

    position: int
    custom_id: str | None
    code: str
    error: str
    detail: str | None
    metadata: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An item without a result: it has failed, or is open."""

    position: int
    custom_id: str | None
    code: str | None
    """None of an open one."""
    error: str | None
    detail: str | None


class RunResultRepository:
    """Reads items together with their vectors, answers or errors."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def vectors(
        self, wanted: PageOf, models: Sequence[EmbeddingModel], *, with_vector: bool = True
    ) -> ResultPage:
        """Return the next vectors after a position, each of the first model that has one.

        Without `with_vector` the same items come without them.
        """
        return read_vectors(self._session, wanted, models, with_vector=with_vector)

    def answers(self, wanted: PageOf, provider: str, model: str) -> ResultPage:
        """Return the next answers after a position."""
        return read_answers(self._session, wanted, provider, model)

    def lines(
        self,
        wanted: PageOf,
        parameters: Mapping[str, Any],
        answers_of: tuple[str, str] | None,
        models: Sequence[EmbeddingModel],
    ) -> LinePage:
        """Return all items after a position, with what became of each; see `read_lines`."""
        return read_lines(self._session, wanted, parameters, answers_of, models)

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

    def unanswered(
        self, run_id: UUID, after: int, limit: int, *, until: int | None = None
    ) -> list[Unanswered]:
        """Return the next items without a result after a position."""
        rows = self._session.execute(
            select(Item.position, Item.custom_id, Outcome.error_code, Outcome.error, Outcome.detail)
            .outerjoin(Outcome, _its_outcome())
            .where(*_unanswered(run_id, until), Item.position > after)
            .order_by(Item.position)
            .limit(limit)
        )
        return [Unanswered(*row) for row in rows]

    def count_ended(self, run_id: UUID, until: int, *, is_answered: bool) -> int:
        """Count the items up to a position that have a result, or those that have failed."""
        has_failed = Outcome.error_code.is_not(None)
        query = select(func.count()).where(
            Outcome.run_id == run_id,
            Outcome.position <= until,
            ~has_failed if is_answered else has_failed,
        )
        return self._session.scalar(query) or 0

    def position_of(
        self, run_id: UUID, number: int, *, is_answered: bool, until: int | None = None
    ) -> int | None:
        """Return the position of the item of this number among those with a result, or without.

        The first one has the number 1. None where there are not so many.
        """
        if is_answered:
            end = [] if until is None else [Outcome.position <= until]
            query = select(Outcome.position).where(
                Outcome.run_id == run_id, Outcome.error_code.is_(None), *end
            )
            query = query.order_by(Outcome.position)
        else:
            query = select(Item.position).outerjoin(Outcome, _its_outcome())
            query = query.where(*_unanswered(run_id, until)).order_by(Item.position)
        return self._session.scalar(query.offset(number - 1).limit(1))


def _unanswered(run_id: UUID, until: int | None) -> list[ColumnElement[bool]]:
    end = [] if until is None else [Item.position <= until]
    is_open = Outcome.position.is_(None)
    return [Item.run_id == run_id, is_open | Outcome.error_code.is_not(None), *end]


def _its_vector(vectors: FromClause, model: EmbeddingModel) -> ColumnElement[bool]:
    return (vectors.c.content_hash == Item.content_hash) & (vectors.c.model_id == model.id)


def _its_outcome() -> ColumnElement[bool]:
    return (Outcome.run_id == Item.run_id) & (Outcome.position == Item.position)
