"""Notifications: send one, see what became of them, and choose one's own."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.accepted import point_to
from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import IdempotencyKey
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.models import JobState
from promptstack.services.audit.actor import Actor
from promptstack.services.notifications.events import NotifyEvent
from promptstack.services.notifications.service import MAX_MESSAGE, MAX_SUBJECT, NotificationView
from promptstack.services.validation.bounds import Line, Text

router = APIRouter(tags=["notifications"], route_class=ProtectedRoute)


class NotificationBody(BaseModel):
    """A mail to a user."""

    model_config = ConfigDict(extra="forbid")

    user_id: UUID = Field(description="Who gets it, at the address that their account has then.")
    subject: Annotated[Line, Field(min_length=1, max_length=MAX_SUBJECT)]
    message: Annotated[Text, Field(min_length=1, max_length=MAX_MESSAGE)] = Field(
        description="Plain text."
    )


class AcceptedNotification(BaseModel):
    """A notification that was accepted. It is in the ledger, and a worker sends it."""

    id: UUID


class NotificationQuery(PageParameters[UUID]):
    """Which notifications to list."""

    state: JobState | None = None
    uncertain: bool = Field(
        False, description="Only mails that may have been accepted without a reply."
    )
    limit: int = Field(50, ge=1, le=500, description="The most on a page.")


class NotificationPage(PageEnds[UUID]):
    """One page of notifications, newest first."""

    notifications: list[NotificationView]


class Chosen(BaseModel):
    """What of your runs you are told by mail."""

    model_config = ConfigDict(extra="forbid")

    events: Annotated[list[NotifyEvent], Field(max_length=len(NotifyEvent))]


@router.post("/send-notification", status_code=status.HTTP_202_ACCEPTED)
def send_notification(
    body: NotificationBody,
    stack: Stack,
    caller: CurrentCaller,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> AcceptedNotification:
    """Accept a mail to a user; for administrators. A worker sends it."""
    accepted = stack.notifications.send(
        **dict(body), actor=Actor.of(caller), idempotency_key=idempotency_key
    )
    point_to(response, stack, f"/jobs/{accepted}")
    return AcceptedNotification(id=accepted)


@router.get("/notifications")
def list_notifications(
    stack: Stack, query: Annotated[NotificationQuery, Query()]
) -> NotificationPage:
    """Show notifications and what became of them, newest first; for administrators."""
    page = stack.notifications.get_page(query.page, state=query.state, is_uncertain=query.uncertain)
    return NotificationPage(notifications=page.rows, **ends_of(page))


@router.get("/auth/me/events")
def get_events(stack: Stack, caller: CurrentCaller) -> Chosen:
    """Show what of your runs you are told by mail."""
    return Chosen(events=_known(stack.notifications.get_events(caller.user_id)))


@router.put("/auth/me/events")
def choose_events(body: Chosen, stack: Stack, caller: CurrentCaller) -> Chosen:
    """Choose what of your runs you are told by mail."""
    actor = Actor.of(caller)
    chosen = stack.notifications.choose_events(caller.user_id, body.events, actor=actor)
    return Chosen(events=_known(chosen))


def _known(events: list[str]) -> list[NotifyEvent]:
    """Leave out what a later version knows."""
    return [NotifyEvent(event) for event in events if event in set(NotifyEvent)]
