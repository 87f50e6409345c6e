"""Feature flags in the ledger."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.flag_models import FeatureFlag


class FlagRepository:
    """Flags by their name."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_all(self, limit: int) -> Sequence[FeatureFlag]:
        """Flags by name."""
        query = select(FeatureFlag).order_by(FeatureFlag.name).limit(limit)
        return self._session.scalars(query).all()

    def get(self, name: str) -> FeatureFlag | None:
        """The flag of this name."""
        return self._session.get(FeatureFlag, name)

    def get_for_change(self, name: str) -> FeatureFlag | None:
        """A flag, which nobody else changes until this transaction ends."""
        query = select(FeatureFlag).where(FeatureFlag.name == name).with_for_update()
        return self._session.scalars(query).one_or_none()

    def count(self) -> int:
        """How many there are."""
        return self._session.scalar(select(func.count()).select_from(FeatureFlag)) or 0

    def put(self, name: str, rules: list[dict[str, Any]], changed_by: str) -> None:
        """Add a flag, or replace its rules."""
        values = {"rules": rules, "changed_by": changed_by, "changed_at": func.now()}
        statement = insert(FeatureFlag).values(name=name, **values)
        self._session.execute(statement.on_conflict_do_update(index_elements=["name"], set_=values))

    def delete(self, name: str) -> None:
        """Remove a flag."""
        self._session.execute(delete(FeatureFlag).where(FeatureFlag.name == name))
