"""What all models share. A newer server's fields and names are kept as they come."""

from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """Something that the server answers. Fields that this client does not know are kept, too."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


Json = dict[str, Any]


class HasId(Model):
    """Something with an id; methods take it or its id."""

    id: UUID


Id = UUID | str
"""An id, as the server gave it or as text."""


def id_of(thing: HasId | Id) -> str:
    """The id of a thing, or the id itself."""
    return str(thing.id if isinstance(thing, HasId) else thing)
