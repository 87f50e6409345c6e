"""Pages of lists: some rows after or before a key, and how many there are in all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.sql.base import ExecutableOption

COUNT_CAP = 10_000
"""Rows are counted so far: to count more takes longer, and tells a reader no more."""
Row = TypeVar("Row")
Other = TypeVar("Other")


@dataclass(frozen=True)
class PageQuery:
    """Which page is asked for."""

    limit: int = 50
    after: Any = None
    """The last key of the page before it."""
    before: Any = None
    """The first key of the page after it."""
    is_counted: bool = False
    """Whether to count all rows, not only those of the page."""


FIRST_PAGE = PageQuery()


@dataclass(frozen=True)
class Page(Generic[Row]):
    """One page of a list."""

    rows: list[Row]
    after: Any = None
    """The key after which the next page begins; None on the last one."""
    before: Any = None
    """The key before which the previous page ends; None on the first one."""
    count: int | None = None
    """Of all rows, up to `COUNT_CAP`; None where it was not asked for."""
    count_is_capped: bool = False
    """Whether there are more than `count`."""

    def of(self, view: Callable[[Row], Other]) -> "Page[Other]":
        """The same page with something else for each row."""
        return self.with_rows([view(row) for row in self.rows])

    def with_rows(self, rows: list[Other]) -> "Page[Other]":
        """The same page with these in place of its rows."""
        return Page(rows, self.after, self.before, self.count, self.count_is_capped)


def read_page(
    session: Session,
    query: Select[Any],
    key: InstrumentedAttribute[Any],
    asked: PageQuery,
    *,
    newest_first: bool = True,
    options: Sequence[ExecutableOption] = (),
) -> Page[Any]:
    """Read a page of a query, in the order of a unique `key`; `options` say what else to load.

    A query of one entity returns these, any other returns rows that have the key. Two further
    statements at most: whether there is a page on the side that the cursor came from, and a count.
    """
    is_back = asked.before is not None
    # Rows below a key where they go down, and above it where they go up.
    goes_down = newest_first != is_back
    cursor = asked.before if is_back else asked.after
    found = query if cursor is None else query.where(_beyond(key, cursor, goes_down))
    found = found.order_by(key.desc() if goes_down else key).limit(asked.limit + 1)
    found = found.options(*options)
    is_entity = len(query.column_descriptions) == 1
    rows = list(session.scalars(found) if is_entity else session.execute(found))
    has_more = len(rows) > asked.limit
    del rows[asked.limit :]
    first, last = (getattr(rows[end], key.key) if rows else None for end in (0, -1))
    keys = query.with_only_columns(key)
    has_behind = False
    if rows and cursor is not None:
        behind = keys.where(_beyond(key, first, not goes_down)).limit(1)
        has_behind = session.scalar(behind) is not None
    after, before = last if has_more else None, first if has_behind else None
    if is_back:
        rows.reverse()
        after, before = before, after
    count = _count(session, keys) if asked.is_counted else None
    is_capped = count is not None and count > COUNT_CAP
    return Page(rows, after, before, COUNT_CAP if is_capped else count, is_capped)


def _beyond(key: InstrumentedAttribute[Any], cursor: Any, goes_down: bool) -> ColumnElement[bool]:
    beyond: ColumnElement[bool] = key < cursor if goes_down else key > cursor
    return beyond


def _count(session: Session, keys: Select[Any]) -> int:
    some = keys.limit(COUNT_CAP + 1).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0
