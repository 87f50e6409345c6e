"""Collections: what documents and runs belong to."""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError

from promptstack.repositories.base import BaseRepository, change_rows
from promptstack.repositories.content_models import Collection, Document, UnusedContent
from promptstack.repositories.pages import COUNT_CAP, Page, PageQuery
from promptstack.repositories.run_models import Run

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

    def add(
        self, id_: UUID, user_id: UUID | None, name: str, description: str, language: str
    ) -> bool:
        """Add a collection; False where the user has one of this name."""
        values = {"user_id": user_id, "name": name, "description": description}
        new = insert(Collection).values(id=id_, language=language, **values)
        return change_rows(self._session, new.on_conflict_do_nothing()) == 1

    def rename(self, collection: Collection, name: str) -> bool:
        """Give a collection another name; False where its user has one of this name."""
        try:
            with self._session.begin_nested():
                self.update(collection, name=name)
        except IntegrityError:
            self._session.refresh(collection)
            return False
        return True

    def page_of(self, asked: PageQuery, user_id: UUID | None) -> Page[Collection]:
        """A page of a user's collections, or of everybody's, also those that are being deleted."""
        conditions = [] if user_id is None else [Collection.user_id == user_id]
        return self.get_page(asked, *conditions)

    def ids_of(self, user_id: UUID | None) -> Sequence[UUID]:
        """The ids of all collections of a user."""
        return self._session.scalars(select(Collection.id).where(_of(user_id), _IS_LIVE)).all()

    def count(self, user_id: UUID | None) -> int:
        """How many a user has."""
        query = select(func.count()).select_from(Collection).where(_of(user_id), _IS_LIVE)
        return self._session.scalar(query) or 0

    def counts(self, collection_id: UUID) -> dict[str, int]:
        """How much is in a collection, each counted up to a bound."""
        counted = {
            "documents": select(Document.id).where(Document.collection_id == collection_id),
            "runs": select(Run.id).where(Run.collection_id == collection_id),
            "unused_contents": select(UnusedContent.content_hash).where(
                UnusedContent.collection_id == collection_id
            ),
        }
        each = [
            select(func.count())
            .select_from(some.limit(COUNT_CAP).subquery())
            .scalar_subquery()
            .label(name)
            for name, some in counted.items()
        ]
        return dict(self._session.execute(select(*each)).one()._mapping)

    def knows_language(self, language: str) -> bool:
        """Whether PostgreSQL has a text search for it."""
        return bool(self._session.scalar(_KNOWS_LANGUAGE, {"language": language}))

    def mark_deleted(self, collection: Collection) -> bool:
        """Note that a collection is to be deleted; False where it is being deleted already."""
        marked = change_rows(
            self._session,
            update(Collection)
            .where(Collection.id == collection.id, _IS_LIVE)
            .values(deleted_at=func.now()),
        )
        self._session.refresh(collection)
        return marked == 1

    def deleted(self, limit: int) -> Sequence[UUID]:
        """Collections that are being deleted, first the one that waits longest."""
        query = select(Collection.id).where(Collection.deleted_at.is_not(None))
        return self._session.scalars(query.order_by(Collection.deleted_at).limit(limit)).all()

    def remove(self, collection_id: UUID) -> bool:
        """Delete a collection that is empty, once its vectors are gone. Returns whether it went.

        Whoever adds something to it just now is waited for.
        """
        is_used = or_(
            exists().where(UnusedContent.collection_id == collection_id),
            exists().where(Document.collection_id == collection_id),
        )
        gone = delete(Collection).where(Collection.id == collection_id, ~is_used)
        try:
            with self._session.begin_nested():
                return change_rows(self._session, gone) == 1
        except IntegrityError:
            return False  # something was added


_KNOWS_LANGUAGE = text(
    "SELECT EXISTS (SELECT FROM pg_ts_config WHERE cfgname = :language "
    "AND pg_ts_config_is_visible(oid))"
)
_IS_LIVE = Collection.deleted_at.is_(None)


def _of(user_id: UUID | None) -> ColumnElement[bool]:
    return Collection.user_id.is_(None) if user_id is None else Collection.user_id == user_id
