"""Operations: retry or cancel all jobs that a filter matches."""

from dataclasses import replace
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.accepted import point_to
from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.jobs import Filters
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.operation_models import OperationAction
from promptstack.services.audit.actor import Actor
from promptstack.services.operations.views import OperationView

router = APIRouter(prefix="/operations", tags=["operations"], route_class=ProtectedRoute)


class OperationBody(BaseModel):
    """What to do, and to which jobs."""

    model_config = ConfigDict(extra="forbid")

    action: OperationAction
    filter: Filters = Field(
        description="As of `GET /jobs`. A retry without a state is of failed jobs; a cancel, of "
        "queued and running ones. Jobs that are accepted later don't belong to it."
    )


class OperationQuery(PageParameters[UUID]):
    """Which operations to list."""

    owner: AskedOwner = None


class OperationPage(PageEnds[UUID]):
    """One page of operations, newest first."""

    operations: list[OperationView]


class NoQuery(BaseModel):
    """Nothing: a filter in the query would be one that is not applied."""

    model_config = ConfigDict(extra="forbid")


@router.post("", status_code=status.HTTP_202_ACCEPTED)
def create_operation(
    body: OperationBody,
    query: Annotated[NoQuery, Query()],
    stack: Stack,
    caller: CurrentCaller,
    response: Response,
    *,
    keyed: Keyed,
) -> OperationView:
    """Retry or cancel all jobs that a filter matches. A worker does it, step by step."""
    wanted = body.filter.of(stack.owners.choose(caller, body.filter.owner))
    if body.action is OperationAction.RETRY:
        wanted = replace(wanted, api_key_id=caller.only_key)
    operation = stack.operations.start(
        body.action,
        wanted,
        actor=Actor.of(caller),
        user_id=caller.user_id,
        keyed=keyed,
    )
    point_to(response, stack, f"/operations/{operation.id}")
    return operation


@router.get("")
def list_operations(
    stack: Stack, caller: CurrentCaller, query: Annotated[OperationQuery, Query()]
) -> OperationPage:
    """Show your operations, newest first."""
    page = stack.operations.get_page(stack.owners.choose(caller, query.owner), query.page)
    return OperationPage(operations=page.rows, **ends_of(page))


@router.get("/{operation_id}")
def get_operation(operation_id: UUID, stack: Stack, owner: Owner) -> OperationView:
    """Show an operation: how far it has come, and what it could not do."""
    return stack.operations.get(operation_id, owner=owner)
