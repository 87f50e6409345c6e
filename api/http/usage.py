"""Usage: provider calls, their tokens and their cost."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import AskedOwner, CurrentCaller, Stack
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.usage import Group, Unsettled, Usage
from promptstack.services.flags.known import Feature
from promptstack.services.jobs.views import CallView
from promptstack.services.validation.bounds import Time

router = APIRouter(prefix="/usage", tags=["usage"], route_class=ProtectedRoute)

DETAILS = [Group.DAY, Group.MODEL]
"""What only the feature `advanced_analytics` sums by."""


class UsageQuery(BaseModel):
    """What to sum, and by what."""

    model_config = ConfigDict(extra="forbid")

    by: list[Group] | None = Field(
        None,
        max_length=4,
        description="The groups. Unset: `day` and `model`, or none where the feature "
        "`advanced_analytics` is off, which these two need.",
    )
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    until: Time | None = Field(None, description="Before this time.")
    owner: AskedOwner = None
    provider: str | None = None
    model: str | None = None


class CallQuery(PageParameters[int]):
    """Which provider calls to list."""

    unsettled: bool = Field(False, description="Only calls that may have been paid and lost.")
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    limit: int = Field(50, ge=1, le=1_000, description="The most on a page, the newest first.")
    owner: AskedOwner = None


class CallPage(PageEnds[int]):
    """Provider calls, and the sum of those that may have been paid without an answer."""

    calls: list[CallView]
    unsettled: list[Unsettled]


@router.get("/calls")
def list_calls(
    stack: Stack, caller: CurrentCaller, query: Annotated[CallQuery, Query()]
) -> CallPage:
    """Show your provider calls, and what is known of their cost."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.usage.page_of_calls(
        query.page, only_unsettled=query.unsettled, since=query.since, owner=owner
    )
    unsettled = stack.usage.unsettled(since=query.since, owner=owner)
    return CallPage(calls=page.rows, unsettled=unsettled, **ends_of(page))


def _which(
    stack: Stack, caller: CurrentCaller, query: Annotated[UsageQuery, Query()]
) -> dict[str, Any]:
    """Which calls are to be summed; read in a thread, as the ledger is asked whose they are."""
    by = query.by
    if by is None:
        by = DETAILS if stack.flags.is_enabled(Feature.ADVANCED_ANALYTICS, caller) else []
    elif not set(DETAILS).isdisjoint(by):
        stack.flags.check(Feature.ADVANCED_ANALYTICS, caller)
    return {
        "by": by,
        "since": query.since,
        "until": query.until,
        "owner": stack.owners.choose(caller, query.owner),
        "provider": query.provider,
        "model": query.model,
    }


@router.get("")
async def sum_usage(
    stack: Stack,
    which: Annotated[dict[str, Any], Depends(_which)],
    response: Response,
    cache_control: Annotated[
        str | None, Header(description="`no-cache` asks for sums as they are now.")
    ] = None,
) -> list[Usage]:
    """Show your usage. The header `Age` says how many seconds ago it was summed."""
    fresh = "no-cache" in (cache_control or "").lower()
    recent = await stack.recent_usage.sums(fresh=fresh, **which)
    response.headers["Age"] = str(math.ceil(recent.age))
    return recent.value
