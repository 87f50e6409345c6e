"""The audit log, for administrators."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import Stack
from promptstack.api.http.paging import cut
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.audit.log import AuditView
from promptstack.services.validation.bounds import Name, Time

router = APIRouter(prefix="/audit", tags=["audit"], route_class=ProtectedRoute)


class AuditQuery(BaseModel):
    """Which entries to list."""

    model_config = ConfigDict(extra="forbid")

    actor: Name | None = Field(None, description="An e-mail, or the id of a user or a key.")
    action: Name | None = Field(None, description="Such as `key.created`, or `key` for all of it.")
    object: Name | None = Field(None, description="The id or name of what it was done on.")
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    until: Time | None = Field(None, description="Before this time.")
    after: UUID | None = Field(None, description="`after` of the page before.")
    limit: int = Field(50, ge=1, le=500, description="Entries on a page.")


class AuditPage(BaseModel):
    """One page of entries, newest first."""

    entries: list[AuditView]
    after: UUID | None
    """Send it as `after` to get the next page; null on the last one."""


@router.get("")
def list_audit_entries(stack: Stack, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """Show who did what, newest first; for administrators."""
    found = stack.audit.get_many(
        actor=query.actor,
        action=query.action,
        object_id=query.object,
        since=query.since,
        until=query.until,
        after=query.after,
        limit=query.limit + 1,
    )
    page, after = cut(found, query.limit)
    return AuditPage(entries=page, after=after)
