"""Which collection is meant: one is given by its name or by its id."""

from uuid import UUID

from promptstack.repositories.content.collections import default_collection
from promptstack.repositories.content_models import Collection
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.text import check_name, check_storable

DEFAULT_NAME = "default"
ALL = "all"
"""In place of a name: all of one's own collections."""
MAX_NAME_CHARACTERS = 100


def find_collection(unit: UnitOfWork, given: UUID | str, owner: UUID | None) -> Collection:
    """The collection of this id, or of this name. Raises `NotFound`, also for another owner's.

    Without an `owner`, ids of everybody's collections are known, and names of those of callers
    without a user.
    """
    id_ = _read_id(given)
    if id_ is not None:
        found = unit.collections.get(id_)
        if found is None or (owner is not None and found.user_id != owner):
            raise NotFound(f"There is no collection {id_}.")
        return found
    found = unit.collections.find(owner, check_storable(str(given), "The collection"))
    if found is None:
        raise NotFound(
            f"There is no collection {given!a:.200}. Make it first: promptstack collections "
            "create, or POST /collections."
        )
    return found


def place_of(unit: UnitOfWork, given: UUID | str | None, user_id: UUID | None) -> UUID:
    """The id of the collection that a user's document or run goes to.

    Raises `NotFound` for one that isn't the user's own or that is being deleted.
    """
    if given is None or given == DEFAULT_NAME:
        return default_collection(user_id)
    found = find_collection(unit, given, user_id)
    if found.user_id != user_id or found.deleted_at is not None:
        raise NotFound(f"There is no collection {given!a:.200}.")
    return found.id


def check_new_name(name: str) -> str:
    """Return the name of a new collection. Raises `InvalidInput` for one that can't be told."""
    check_name(name, "The name of a collection")
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS or name != name.strip():
        raise InvalidInput(
            f"The name of a collection has 1 to {MAX_NAME_CHARACTERS} characters, and begins and "
            "ends with none that is white space."
        )
    if "/" in name or name == ALL or _read_id(name) is not None:
        raise InvalidInput(
            f"A collection can't be called {name!a:.200}: `{ALL}`, ids and slashes mean other "
            "things. Choose another name."
        )
    return name


def read_name(given: UUID | str) -> str | None:
    """The name that was given; None where it is an id."""
    return str(given) if _read_id(given) is None else None


def _read_id(given: UUID | str) -> UUID | None:
    if isinstance(given, UUID):
        return given
    try:
        return UUID(given)
    except ValueError:
        return None
