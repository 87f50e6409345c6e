"""Usage: provider calls, their tokens and their cost."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import Owner, Stack
from promptstack.api.http.route import AuthenticatedRoute
from promptstack.repositories.usage import Group, Unsettled, Usage
from promptstack.services.jobs.views import CallView
from promptstack.services.validation.bounds import Time

router = APIRouter(prefix="/usage", tags=["usage"], route_class=AuthenticatedRoute)


class UsageQuery(BaseModel):
    """What to sum, and by what."""

    model_config = ConfigDict(extra="forbid")

    by: list[Group] = Field([Group.DAY, Group.MODEL], max_length=4, description="The groups.")
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    until: Time | None = Field(None, description="Before this time.")
    user: str | None = Field(None, description="Only this user's, by email; for administrators.")
    provider: str | None = None
    model: str | None = None


class CallQuery(BaseModel):
    """Which provider calls to list."""

    model_config = ConfigDict(extra="forbid")

    unsettled: bool = Field(False, description="Only calls that may have been paid and lost.")
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    limit: int = Field(50, ge=1, le=1_000, description="How many, the newest first.")


class Calls(BaseModel):
    """Provider calls, and the sum of those that may have been paid without an answer."""

    calls: list[CallView]
    unsettled: list[Unsettled]


@router.get("/calls")
def list_calls(stack: Stack, owner: Owner, query: Annotated[CallQuery, Query()]) -> Calls:
    """Show your provider calls, and what is known of their cost."""
    return Calls(
        calls=stack.usage.calls(
            only_unsettled=query.unsettled, since=query.since, owner=owner, limit=query.limit
        ),
        unsettled=stack.usage.unsettled(since=query.since, owner=owner),
    )


@router.get("")
def sum_usage(stack: Stack, owner: Owner, query: Annotated[UsageQuery, Query()]) -> list[Usage]:
    """Show your usage; an administrator sees everybody's."""
    return stack.usage.sums(
        query.by,
        since=query.since,
        until=query.until,
        owner=owner,
        email=query.user,
        provider=query.provider,
        model=query.model,
    )
