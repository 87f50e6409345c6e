"""Outcomes: how items of runs ended. They are only added; an item without one is open."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, cast
from uuid import UUID

from sqlalchemy import (
    Executable,
    SelectBase,
    Table,
    bindparam,
    delete,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.run_models import Item, ItemTries, Outcome
from promptstack.repositories.runs.items import is_open_item
from promptstack.repositories.wire_values import ArrayLiteral

DUPLICATE_ID = "DUPLICATE_ID"


class Ended(NamedTuple):
    """How an item ended."""

    position: int
    is_reused: bool = False
    error_code: str | None = None
    error: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class Counted:
    """How many outcomes were added. An item that had one already is not counted."""

    succeeded: int = 0
    failed: int = 0
    reused: int = 0


class OutcomeRepository:
    """Adds, counts and takes back the outcomes of items."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def end(self, run_id: UUID, ended: Sequence[Ended]) -> Counted:
        """Add outcomes of items that have none. Returns what was added."""
        if not ended:
            return Counted()
        # Most outcomes have no error, and then the statement is short.
        names = tuple(name for name in _COLUMNS if any(getattr(one, name) for one in ended))
        new = {
            f"new_{name}": [getattr(one, name) for one in ended] for name in ("position", *names)
        }
        succeeded, failed, reused = self._session.execute(
            _end(names), {"the_run": run_id, **new}
        ).one()
        return Counted(succeeded, failed, reused)

    def end_duplicates(self, run_id: UUID) -> int:
        """Fail items that have the `custom_id` of an earlier item. Returns how many.

        An item that can't be asked for has failed already, and fails no other with its id.
        """
        first = func.first_value(Item.position).over(
            partition_by=Item.custom_id, order_by=Item.position
        )
        asked = (Item.run_id == run_id, Item.content_hash.is_not(None))
        seen = select(Item.position, first.label("first")).where(*asked).subquery()
        again = select(
            literal(run_id),
            seen.c.position,
            literal(DUPLICATE_ID),
            func.format("Line %s has the same id; each needs its own.", seen.c.first),
        ).where(seen.c.position != seen.c.first)
        return self._fail(again)

    def end_open(self, run_id: UUID, first: int, last: int, error_code: str, error: str) -> int:
        """Fail the open items from `first` to `last`. Returns how many."""
        left = select(Item.run_id, Item.position, literal(error_code), literal(error)).where(
            Item.run_id == run_id, Item.position.between(first, last), is_open_item()
        )
        return self._fail(left)

    def _fail(self, failed: SelectBase) -> int:
        columns = ["run_id", "position", "error_code", "error"]
        added = insert(Outcome).from_select(columns, failed).on_conflict_do_nothing()
        return change_rows(self._session, added)

    def reopen_failed(self, run_id: UUID) -> int:
        """Open the items that failed at a provider, without bad inputs. Returns how many."""
        could_be_asked = exists().where(
            Item.run_id == Outcome.run_id,
            Item.position == Outcome.position,
            Item.content_hash.is_not(None),
        )
        change_rows(self._session, delete(ItemTries).where(ItemTries.run_id == run_id))
        return change_rows(
            self._session,
            delete(Outcome).where(
                Outcome.run_id == run_id,
                Outcome.error_code.is_not(None),
                Outcome.error_code != DUPLICATE_ID,
                could_be_asked,
            ),
        )

    def count_outcomes(self, run_id: UUID) -> Counted:
        """Count all outcomes of a run."""
        row = self._session.execute(
            select(
                func.count().filter(Outcome.error_code.is_(None)),
                func.count().filter(Outcome.error_code.is_not(None)),
                func.count().filter(Outcome.is_reused),
            ).where(Outcome.run_id == run_id)
        ).one()
        return Counted(*row)


_OUTCOMES = cast("Table", Outcome.__table__)
_COLUMNS = ("is_reused", "error_code", "error", "detail")
"""Columns that an outcome may set. The others keep their defaults."""


@cache
def _end(names: tuple[str, ...]) -> Executable:
    columns = ("position", *names)
    arrays = [
        func.unnest(bindparam(f"new_{name}", type_=ArrayLiteral(_OUTCOMES.c[name].type)))
        for name in columns
    ]
    new = select(bindparam("the_run", type_=_OUTCOMES.c.run_id.type), *arrays)
    added = (
        insert(_OUTCOMES)
        .from_select(["run_id", *columns], new)
        .on_conflict_do_nothing()
        .returning(_OUTCOMES.c.error_code, _OUTCOMES.c.is_reused)
        .cte("added")
    )
    return select(
        func.count().filter(added.c.error_code.is_(None)),
        func.count().filter(added.c.error_code.is_not(None)),
        func.count().filter(added.c.is_reused),
    ).select_from(added)
