"""Budgets: spend caps of keys, users and the deployment, and how much of them is used."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel

from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.budgets.service import (
    OF_DEPLOYMENT,
    BudgetView,
    Caps,
    Scope,
    Subject,
)

router = APIRouter(prefix="/budgets", tags=["budgets"], route_class=ProtectedRoute)


class BudgetQuery(PageParameters[UUID]):
    """Whose budgets to list."""

    owner: AskedOwner = None


class BudgetPage(PageEnds[UUID]):
    """One page of budgets, the deployment's first; who has no cap has none."""

    budgets: list[BudgetView]


class Changed(BaseModel):
    """A budget after a change."""

    budget: BudgetView | None
    """null where no cap is left."""


@router.get("")
def list_budgets(
    stack: Stack, caller: CurrentCaller, query: Annotated[BudgetQuery, Query()]
) -> BudgetPage:
    """Show what you and your keys may spend, and have spent."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.budgets.get_page(owner, query.page)
    return BudgetPage(budgets=page.rows, **ends_of(page))


@router.put("/keys/{key_id}")
def set_key_budget(
    key_id: UUID, body: Caps, stack: Stack, caller: CurrentCaller, owner: Owner
) -> Changed:
    """Set what a key of yours may spend; null takes a cap away."""
    subject = Subject(Scope.KEY, key_id)
    return Changed(budget=stack.budgets.set(subject, body, owner=owner, by=caller))


@router.put("/users/{user_id}")
def set_user_budget(user_id: UUID, body: Caps, stack: Stack, caller: CurrentCaller) -> Changed:
    """Set what a user may spend, by all their keys together; for administrators."""
    subject = Subject(Scope.USER, user_id)
    return Changed(budget=stack.budgets.set(subject, body, by=caller))


@router.put("/deployment")
def set_deployment_budget(body: Caps, stack: Stack, caller: CurrentCaller) -> Changed:
    """Set what all may spend together; for super administrators."""
    return Changed(budget=stack.budgets.set(OF_DEPLOYMENT, body, by=caller))
