"""Usage: what was asked of providers, what it took and what it cost."""

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api.http.auth import Owner, Stack
from repositories.usage import Group, Usage

router = APIRouter(prefix="/usage", tags=["usage"])


class UsageQuery(BaseModel):
    """What to sum, and by what."""

    model_config = ConfigDict(extra="forbid")

    by: list[Group] = Field([Group.DAY, Group.MODEL], max_length=4, description="The groups.")
    since: datetime | None = Field(None, description="From this time on; UTC unless it says.")
    until: datetime | None = Field(None, description="Before this time.")
    user: str | None = Field(None, description="Only this user's, by email; for administrators.")
    provider: str | None = None
    model: str | None = None


@router.get("")
def sum_usage(stack: Stack, owner: Owner, query: Annotated[UsageQuery, Query()]) -> list[Usage]:
    """Show your usage; an administrator sees everybody's."""
    return stack.usage.sums(
        query.by,
        since=_in_utc(query.since),
        until=_in_utc(query.until),
        owner=owner,
        email=query.user,
        provider=query.provider,
        model=query.model,
    )


def _in_utc(time: datetime | None) -> datetime | None:
    return time.replace(tzinfo=UTC) if time is not None and time.tzinfo is None else time
