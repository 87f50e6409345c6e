"""Collections: what documents and runs belong to."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.models import Collection, Document, UnusedContent, new_id

NOBODYS: Final = UUID(int=0)


def default_collection(user_id: UUID | None) -> UUID:
    """The id of the default collection of a user, or of callers without a user.

    It is known without a look, so that a job that names no collection costs nothing more.
    """
    return user_id or NOBODYS


class CollectionRepository(BaseRepository[Collection]):
    """Collections. Those that are being deleted are found only where it says so."""

    model = Collection

    def find(self, user_id: UUID | None, name: str) -> Collection | None:
        """A user's collection of this name; None stands for callers without a user."""
        query = select(Collection).where(_of(user_id), Collection.name == name, _IS_LIVE)
        return self._session.scalars(query).one_or_none()

    def add(self, user_id: UUID | None, name: str, description: str, language: str) -> UUID | None:
        """Add a collection. Returns its id; None where the user has one of this name."""
        values = {"user_id": user_id, "name": name, "description": description}
        added = (
            insert(Collection)
            .values(id=new_id(), language=language, **values)
            .on_conflict_do_nothing()
            .returning(Collection.id)
        )
        id_: UUID | None = self._session.scalar(added)
        return id_

    def ids_of(self, user_id: UUID | None) -> Sequence[UUID]:
        """The ids of all collections of a user."""
        return self._session.scalars(select(Collection.id).where(_of(user_id), _IS_LIVE)).all()

    def mark_deleted(self, collection_id: UUID) -> bool:
        """Note that a collection is to be deleted; False where it is being deleted already."""
        return change_rows(
            self._session,
            update(Collection)
            .where(Collection.id == collection_id, _IS_LIVE)
            .values(deleted_at=func.now()),
        ) == 1

    def next_deleted(self) -> UUID | None:
        """A collection that is being deleted, the one that waits longest."""
        query = select(Collection.id).where(Collection.deleted_at.is_not(None))
        return self._session.scalar(query.order_by(Collection.deleted_at).limit(1))

    def remove(self, collection_id: UUID) -> bool:
        """Delete a collection that is empty, once its vectors are gone. Returns whether it went."""
        is_empty = ~or_(
            exists().where(UnusedContent.collection_id == collection_id),
            exists().where(Document.collection_id == collection_id),
        )
        return change_rows(
            self._session, delete(Collection).where(Collection.id == collection_id, is_empty)
        ) == 1

    def count(self, user_id: UUID | None) -> int:
        """How many a user has."""
        query = select(func.count()).select_from(Collection).where(_of(user_id), _IS_LIVE)
        return self._session.scalar(query) or 0


_IS_LIVE = Collection.deleted_at.is_(None)


def _of(user_id: UUID | None) -> ColumnElement[bool]:
    return Collection.user_id.is_(None) if user_id is None else Collection.user_id == user_id
