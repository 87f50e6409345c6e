"""API keys: list, make, rotate and revoke your own."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, status
from pydantic import Field

from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.access.key_terms import KeyTerms, KeyView
from promptstack.services.access.keys import IssuedKey
from promptstack.services.audit.actor import Actor

router = APIRouter(prefix="/keys", tags=["keys"], route_class=ProtectedRoute)


class KeyQuery(PageParameters[UUID]):
    """Which keys to list."""

    owner: AskedOwner = None


class KeyPage(PageEnds[UUID]):
    """One page of keys, newest first."""

    keys: list[KeyView]


class ShownKey(KeyView):
    """A key with its secret."""

    secret: str = Field(description="Keep it now; it is not shown again.")


@router.get("")
def list_keys(stack: Stack, caller: CurrentCaller, query: Annotated[KeyQuery, Query()]) -> KeyPage:
    """Show your keys, newest first, without their secrets."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.keys.get_page(owner, query.page)
    return KeyPage(keys=page.rows, **ends_of(page))


@router.post("", status_code=status.HTTP_201_CREATED)
def create_key(body: KeyTerms, stack: Stack, caller: CurrentCaller, keyed: Keyed) -> ShownKey:
    """Make a key of yours."""
    return _shown(stack.keys.issue(caller.email, body, by=Actor.of(caller), keyed=keyed))


@router.post("/{key_id}/rotate")
def rotate_key(key_id: UUID, stack: Stack, caller: CurrentCaller, keyed: Keyed) -> ShownKey:
    """Give a key of yours a new secret; the one it has now opens for a day more."""
    owner = caller.user_id
    return _shown(stack.keys.rotate(key_id, owner=owner, by=Actor.of(caller), keyed=keyed))


@router.post("/{key_id}/revoke")
def revoke_key(key_id: UUID, stack: Stack, caller: CurrentCaller, owner: Owner) -> KeyView:
    """Let a key open nothing from now on; its jobs go on."""
    return stack.keys.revoke(key_id, owner=owner, by=caller)


def _shown(issued: IssuedKey) -> ShownKey:
    return ShownKey(**dict(issued.key), secret=issued.secret)
