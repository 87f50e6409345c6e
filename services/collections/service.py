"""Collections: where documents and runs are kept apart, and what is searched."""

from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.session import Ledger
from promptstack.services.collections.lookup import check_new_name, find_collection
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable


class CollectionExists(InvalidInput):
    """The user has a collection of this name already."""

    code = "COLLECTION_EXISTS"


class CollectionView(BaseModel):
    """A collection as its owner may see it."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    name: str
    description: str
    language: str
    created_at: datetime
    deleted_at: datetime | None


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
        language: str = "english",
    ) -> CollectionView:
        """Make a collection. Raises `InvalidInput` and `CollectionExists`."""
        check_new_name(name)
        check_storable(description, "The description")
        with self._ledger.transaction() as unit:
            added = unit.collections.add(user_id, name, description, language)
            collection = added and unit.collections.get(added)
            if not collection:
                raise CollectionExists(f"There is a collection {name!a} already.")
            return CollectionView.model_validate(collection)

    def get(self, collection: UUID | str, *, owner: UUID | None = None) -> CollectionView:
        """Return a collection. Raises `NotFound`, also for another owner's."""
        with self._ledger.transaction() as unit:
            return CollectionView.model_validate(find_collection(unit, collection, owner))
