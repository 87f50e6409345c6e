"""The audit log, for administrators."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import Field

from promptstack.api.http.auth import Stack
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.audit import AuditFilter
from promptstack.services.audit.log import AuditView
from promptstack.services.validation.bounds import Name, Time

router = APIRouter(prefix="/audit", tags=["audit"], route_class=ProtectedRoute)


class AuditQuery(PageParameters[UUID]):
    """Which entries to list."""

    actor: Name | None = Field(None, description="An e-mail, or the id of a user or a key.")
    action: Name | None = Field(None, description="Such as `key.created`, or `key` for all of it.")
    object: Name | None = Field(None, description="The id or name of what it was done on.")
    since: Time | None = Field(None, description="From this time on; UTC unless it says.")
    until: Time | None = Field(None, description="Before this time.")
    limit: int = Field(50, ge=1, le=500, description="The most on a page.")


class AuditPage(PageEnds[UUID]):
    """One page of entries, newest first."""

    entries: list[AuditView]


@router.get("")
def list_audit_entries(stack: Stack, query: Annotated[AuditQuery, Query()]) -> AuditPage:
    """Show who did what, newest first; for administrators."""
    wanted = AuditFilter(query.actor, query.action, query.object, query.since, query.until)
    page = stack.audit.get_page(wanted, query.page)
    return AuditPage(entries=page.rows, **ends_of(page))
