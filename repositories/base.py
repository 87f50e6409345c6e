"""What every repository can do."""

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast
from uuid import UUID

from sqlalchemy import ColumnElement, CursorResult, Executable, inspect, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from promptstack.repositories.errors import UnknownFilter
from promptstack.repositories.models import Base
from promptstack.repositories.pages import Page, PageQuery, read_page

T = TypeVar("T", bound=Base)


class BaseRepository(Generic[T]):
    """Reads and writes one table within the transaction of a unit of work. Never commits."""

    model: ClassVar[type[Any]]

    def __init__(self, session: Session) -> None:
        self._session = session

    def get(self, id_: UUID | int) -> T | None:
        """Return the row of this primary key, or None."""
        return self._session.get(self.model, id_)

    def get_many(
        self,
        skip: int = 0,
        limit: int = 100,
        *,
        after: UUID | int | None = None,
        newest_first: bool = False,
        **filters: Any,
    ) -> Sequence[T]:
        """Return rows whose columns equal `filters`, ordered by primary key.

        Keys are in order of creation. `after` is the cursor: the last key of the page before;
        unlike `skip` it stays true when rows are added meanwhile. Raises `UnknownFilter`.
        """
        key = self._key()
        query = select(self.model).where(*self._conditions(filters))
        if after is not None:
            query = query.where(key < after if newest_first else key > after)
        query = query.order_by(key.desc() if newest_first else key).offset(skip).limit(limit)
        return self._session.scalars(query).all()

    def get_page(
        self, asked: PageQuery, *conditions: ColumnElement[bool], newest_first: bool = True
    ) -> Page[T]:
        """Return a page of the rows that meet all conditions."""
        query = select(self.model).where(*conditions)
        return read_page(self._session, query, self._key(), asked, newest_first=newest_first)

    def keys_between(self, first: UUID, last: UUID, *, limit: int) -> list[UUID]:
        """Return primary keys in a range, both ends in it, the newest first."""
        key = self._key()
        query = select(key).where(key.between(first, last)).order_by(key.desc()).limit(limit)
        return list(self._session.scalars(query))

    def create(self, **values: Any) -> T:
        """Add a row and flush it, so that its defaults are set and its constraints checked."""
        row: T = self.model(**values)
        self._session.add(row)
        self._session.flush()
        return row

    def update(self, row: T, **values: Any) -> T:
        """Change columns of a row. Raises `UnknownFilter` for a column that doesn't exist."""
        self._check_names(values)
        for name, value in values.items():
            setattr(row, name, value)
        self._session.flush()
        return row

    def delete(self, row: T) -> None:
        """Remove a row."""
        self._session.delete(row)
        self._session.flush()

    def _key(self) -> InstrumentedAttribute[Any]:
        name = inspect(self.model).primary_key[0].name
        return getattr(self.model, name)  # type: ignore[no-any-return]

    def _conditions(self, filters: dict[str, Any]) -> list[ColumnElement[bool]]:
        self._check_names(filters)
        return [getattr(self.model, name) == value for name, value in filters.items()]

    def _check_names(self, names: dict[str, Any]) -> None:
        known = set(inspect(self.model).columns.keys())
        unknown = sorted(set(names) - known)
        if unknown:
            raise UnknownFilter(
                f"{self.model.__name__} has no column {', '.join(unknown)}. "
                f"Known: {', '.join(sorted(known))}."
            )


def change_rows(session: Session, statement: Executable) -> int:
    """Change rows that no session holds as objects. Returns how many were changed."""
    result = session.execute(statement, execution_options={"synchronize_session": False})
    return cast("CursorResult[Any]", result).rowcount
