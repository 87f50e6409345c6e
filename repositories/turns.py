"""Whose turn it was, where users share: a row for each thing that is shared."""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.models import TurnsOf


class SavedTurns(NamedTuple):
    """Who had the last turn, and what users have left of theirs."""

    last: UUID | None
    credits: Mapping[UUID, float]


class TurnsRepository:
    """Keeps turns between two times. One caller at a time: see `UnitOfWork.try_lock`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def read(self, shared: str) -> SavedTurns:
        """Return how the turns at `shared` stand."""
        found = self._session.get(TurnsOf, shared, populate_existing=True)
        if found is None:
            return SavedTurns(None, {})
        return SavedTurns(found.last, {UUID(user): left for user, left in found.credits.items()})

    def write(self, shared: str, last: UUID | None, credits_: Mapping[UUID, float]) -> None:
        """Note how they stand now."""
        kept = {user.hex: round(left, 6) for user, left in credits_.items() if left}
        statement = insert(TurnsOf).values(shared=shared, last=last, credits=kept)
        self._session.execute(
            statement.on_conflict_do_update(
                index_elements=[TurnsOf.shared],
                set_={"last": statement.excluded.last, "credits": statement.excluded.credits},
            )
        )
