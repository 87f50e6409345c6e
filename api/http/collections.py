"""Collections: what documents and runs belong to, and what is searched."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.accepted import point_to
from promptstack.api.http.auth import AskedOwner, CurrentCaller, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.audit.actor import Actor
from promptstack.services.collections.lookup import MAX_NAME_CHARACTERS, read_name
from promptstack.services.collections.service import (
    DEFAULT_LANGUAGE,
    MAX_DESCRIPTION_CHARACTERS,
    CollectionDetail,
    CollectionView,
)
from promptstack.services.validation.bounds import Line, Text

router = APIRouter(prefix="/collections", tags=["collections"], route_class=ProtectedRoute)

CollectionName = Annotated[Line, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
Description = Annotated[Text, Field(max_length=MAX_DESCRIPTION_CHARACTERS)]


class NewCollection(BaseModel):
    """A collection to make."""

    model_config = ConfigDict(extra="forbid")

    name: CollectionName = Field(description="Unique among yours; no id, no slash, not `all`.")
    description: Description = Field("", description="For people.")
    language: CollectionName = Field(
        DEFAULT_LANGUAGE,
        description="Of its texts, as PostgreSQL's text search calls it; `simple` takes words of "
        "any language as they are. It can't be changed.",
    )


class CollectionChange(BaseModel):
    """What to change; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid")

    name: CollectionName | None = None
    description: Description | None = None


class CollectionQuery(PageParameters[UUID]):
    """Which collections to list."""

    owner: AskedOwner = None


class CollectionPage(PageEnds[UUID]):
    """One page of collections, newest first."""

    collections: list[CollectionView]


class Reached:
    """A collection that a path names, and whose it may be."""

    def __init__(
        self,
        caller: CurrentCaller,
        collection_id: Annotated[
            str, Path(max_length=MAX_NAME_CHARACTERS, description="Its id, or your name for it.")
        ],
    ) -> None:
        self.given = collection_id
        # A name is that of one's own, also for an administrator.
        everybodys = caller.is_admin and read_name(collection_id) is None
        self.owner = None if everybodys else caller.user_id


NamedCollection = Annotated[Reached, Depends()]


@router.get("")
def list_collections(
    stack: Stack, caller: CurrentCaller, query: Annotated[CollectionQuery, Query()]
) -> CollectionPage:
    """Show your collections, newest first."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.collections.get_page(query.page, owner=owner)
    return CollectionPage(collections=page.rows, **ends_of(page))


@router.post("", status_code=status.HTTP_201_CREATED)
def create_collection(
    body: NewCollection, stack: Stack, caller: CurrentCaller, keyed: Keyed
) -> CollectionView:
    """Make a collection of yours."""
    return stack.collections.create(**dict(body), user_id=caller.user_id, keyed=keyed)


@router.get("/{collection_id}")
def get_collection(stack: Stack, named: NamedCollection) -> CollectionDetail:
    """Show a collection, and how much is in it."""
    return stack.collections.get(named.given, owner=named.owner)


@router.patch("/{collection_id}")
def change_collection(
    body: CollectionChange, stack: Stack, named: NamedCollection
) -> CollectionDetail:
    """Change what a collection is called."""
    return stack.collections.update(named.given, owner=named.owner, **dict(body))


@router.delete("/{collection_id}", status_code=status.HTTP_202_ACCEPTED)
def delete_collection(
    stack: Stack, caller: CurrentCaller, named: NamedCollection, response: Response
) -> CollectionDetail:
    """Delete a collection with its documents and runs, in the background.

    It is there until all of it is gone, and is not searched any more. Vectors that nobody else uses
    go with it; runs that go on are cancelled.
    """
    deleted = stack.collections.delete(named.given, owner=named.owner, actor=Actor.of(caller))
    point_to(response, stack, f"/collections/{deleted.id}")
    return deleted
