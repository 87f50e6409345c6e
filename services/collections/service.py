"""Collections: where documents and runs are kept apart, and what is searched."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.content.collections import default_collection
from promptstack.repositories.content_models import Collection
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.collections.lookup import check_new_name, find_collection
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.idempotency.claims import claim
from promptstack.services.text import check_storable
from promptstack.services.validation.ids import check_user, read_owner

MAX_COLLECTIONS = 1_000
"""Of one user."""
MAX_DESCRIPTION_CHARACTERS = 1_000
DEFAULT_LANGUAGE = "english"


class CollectionExists(WrongState):
    """The user has a collection of this name already."""

    code = "COLLECTION_EXISTS"


class CollectionView(BaseModel):
    """A collection."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    name: str
    description: str
    language: str
    """Of its texts; it decides which words are the same."""
    created_at: datetime
    deleted_at: datetime | None
    """Since when it is being deleted, in the background; it is not searched any more."""


class CollectionDetail(CollectionView):
    """A collection, and what is in it."""

    documents: int
    """Up to 10,000 are counted."""
    runs: int
    unused_contents: int
    """Of one that is being deleted: texts whose vectors are still to be looked at."""


class CollectionService:
    """Makes collections and answers for them. One may be given by its name or by its id."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def create(
        self,
        name: str,
        *,
        user_id: UUID | None = None,
        description: str = "",
        language: str = DEFAULT_LANGUAGE,
        keyed: KeyedRequest | None = None,
    ) -> CollectionView:
        """Make a collection. Raises `InvalidInput`, `CollectionExists` and `NotFound`."""
        check_new_name(name)
        _check_description(description)
        check_storable(language, "The language")
        id_ = new_id()
        with self._ledger.transaction() as unit:
            check_user(unit, user_id)
            made = claim(unit, keyed, id_)
            if made is not None:
                return CollectionView.model_validate(find_collection(unit, made, user_id))
            _check_language(unit, language)
            if unit.collections.count(user_id) >= MAX_COLLECTIONS:
                raise InvalidInput(
                    f"There are {MAX_COLLECTIONS:,} collections, which is the most of one user. "
                    "Delete one first."
                )
            if not unit.collections.add(id_, user_id, name, description, language):
                raise _exists(name)
            return CollectionView.model_validate(unit.collections.get(id_))

    def get(self, collection: UUID | str, *, owner: UUID | None = None) -> CollectionDetail:
        """Return a collection. Raises `NotFound`, also for another owner's."""
        with self._ledger.transaction() as unit:
            return _detail(unit, find_collection(unit, collection, owner))

    def get_page(
        self, asked: PageQuery = FIRST_PAGE, *, owner: UUID | None = None
    ) -> Page[CollectionView]:
        """Return a page of a user's collections, or of everybody's, newest first."""
        with self._ledger.transaction() as unit:
            return unit.collections.page_of(asked, read_owner(owner)).of(
                CollectionView.model_validate
            )

    def update(
        self,
        collection: UUID | str,
        *,
        owner: UUID | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> CollectionDetail:
        """Change what a collection is called. Raises as `create`, and `WrongState`."""
        if name is not None:
            check_new_name(name)
        if description is not None:
            _check_description(description)
        with self._ledger.transaction() as unit:
            found = find_collection(unit, collection, owner)
            if name is not None and name != found.name:
                if found.id == default_collection(found.user_id):
                    raise WrongState("The default collection keeps its name.")
                if not unit.collections.rename(found, name):
                    raise _exists(name)
            if description is not None:
                unit.collections.update(found, description=description)
            return _detail(unit, found)

    def delete(
        self,
        collection: UUID | str,
        *,
        owner: UUID | None = None,
        actor: Actor | None = None,
    ) -> CollectionDetail:
        """Delete a collection with its documents and runs, and vectors that nobody else uses.

        Nobody finds it by its name any more, and maintenance deletes what is in it. It is there
        under its id until all of that is gone. Its runs that go on are cancelled. Where it is not
        the `actor`'s own, this is audited. Raises `NotFound`, and `WrongState` for a default one.
        """
        with self._ledger.transaction() as unit:
            found = find_collection(unit, collection, owner)
            if found.id == default_collection(found.user_id):
                raise WrongState(
                    "The default collection stays; delete its documents and runs, or keep what "
                    "is to be deleted together in a collection of its own."
                )
            if unit.collections.mark_deleted(found) and actor is not None:
                _audit(unit, found, actor)
            return _detail(unit, found)


def _detail(unit: UnitOfWork, found: Collection) -> CollectionDetail:
    counts = unit.collections.counts(found.id)
    return CollectionDetail(**CollectionView.model_validate(found).model_dump(), **counts)


def _exists(name: str) -> CollectionExists:
    return CollectionExists(f"There is a collection {name!a} already.")


def _check_description(description: str) -> None:
    check_storable(description, "The description")
    if len(description) > MAX_DESCRIPTION_CHARACTERS:
        raise InvalidInput(
            f"The description has {len(description):,} characters; at most "
            f"{MAX_DESCRIPTION_CHARACTERS:,} are accepted."
        )


def _check_language(unit: UnitOfWork, language: str) -> None:
    if not unit.collections.knows_language(language):
        raise InvalidInput(
            f"PostgreSQL has no text search for the language {language[:40]!a}. `simple` takes "
            "words of any language as they are."
        )


def _audit(unit: UnitOfWork, collection: Collection, actor: Actor) -> None:
    if collection.user_id != actor.user_id:
        AuditLog.record(
            unit,
            actor=actor,
            action=Action.COLLECTION_DELETED,
            object=ObjectKind.COLLECTION.of(collection.id),
            detail={"owner_id": collection.user_id, "name": collection.name},
        )
