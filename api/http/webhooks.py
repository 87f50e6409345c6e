"""Webhooks: where the ends of jobs and runs are told to, and what became of it."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.bodies import refuse_many_fields
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.repositories.webhook_models import DeliveryState
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.bounds import Line
from promptstack.services.validation.webhook_urls import WebhookUrl
from promptstack.services.webhooks.events import ALL, EventType
from promptstack.services.webhooks.service import IssuedSecret, IssuedWebhook
from promptstack.services.webhooks.views import DeliveryView, SecretView, WebhookView

router = APIRouter(prefix="/webhooks", tags=["webhooks"], route_class=ProtectedRoute)

Url = Annotated[WebhookUrl, Field(description="A public https:// address.")]
Events = Annotated[
    list[Annotated[str, Field(json_schema_extra={"enum": [ALL, *EventType]})]],
    Field(min_length=1, max_length=50, description="Types of events; `*` is all."),
]
Description = Annotated[Line, Field(max_length=200, description="For you to know it again.")]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)


class WebhookBody(_Body):
    """An endpoint."""

    url: Url
    events: Events = [ALL]
    description: Description = ""


class WebhookChanges(_Body):
    """What to change; what is left out stays."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: StrictBool | None = Field(
        None, description="Whether events are sent. They are kept while it is off, for some days."
    )


class WebhookQuery(PageParameters[UUID]):
    """Which endpoints to list."""

    owner: AskedOwner = None


class OwnerQuery(BaseModel):
    """Whose secret is asked for."""

    model_config = ConfigDict(extra="forbid")

    owner: AskedOwner = None


class LogQuery(PageParameters[UUID]):
    """Which deliveries of an endpoint to list."""

    state: DeliveryState | None = None
    object_id: UUID | None = Field(None, description="Only of this job or run.")


class DeliveryQuery(LogQuery):
    """Which deliveries to list."""

    owner: AskedOwner = None


class WebhookPage(PageEnds[UUID]):
    """One page of endpoints, newest first."""

    webhooks: list[WebhookView]


class DeliveryPage(PageEnds[UUID]):
    """One page of deliveries, newest first."""

    deliveries: list[DeliveryView]


class ShownWebhook(WebhookView):
    """An endpoint with its secret."""

    secret: str = Field(description="Signs its events. Keep it now; it is not shown again.")


class ShownSecret(SecretView):
    """Your own secret."""

    secret: str = Field(
        description="Signs for the addresses that your jobs and runs name. It is not shown again."
    )


@router.post("", status_code=status.HTTP_201_CREATED)
def create_webhook(
    body: WebhookBody, stack: Stack, caller: CurrentCaller, keyed: Keyed
) -> ShownWebhook:
    """Add an endpoint that is told how your jobs and runs end."""
    made = stack.webhooks.create(
        **dict(body), user_id=caller.user_id, by=Actor.of(caller), keyed=keyed
    )
    return _shown(made)


@router.get("")
def list_webhooks(
    stack: Stack, caller: CurrentCaller, query: Annotated[WebhookQuery, Query()]
) -> WebhookPage:
    """Show your endpoints, newest first, without their secrets."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.webhooks.get_page(owner, query.page)
    return WebhookPage(webhooks=page.rows, **ends_of(page))


@router.get("/secret")
def get_webhook_secret(
    stack: Stack, caller: CurrentCaller, query: Annotated[OwnerQuery, Query()]
) -> SecretView:
    """Say whether you have a secret for the addresses that your jobs and runs name."""
    owner = stack.owners.choose(caller, query.owner)
    if owner is None:
        raise InvalidInput("A secret is one user's; give an e-mail address.")
    return stack.webhooks.get_own_secret(owner)


@router.post("/secret", status_code=status.HTTP_201_CREATED)
def rotate_webhook_secret(stack: Stack, caller: CurrentCaller, keyed: Keyed) -> ShownSecret:
    """Make or rotate that secret; the one before it signs, too, for a day more."""
    made = stack.webhooks.rotate_own_secret(caller.user_id, by=Actor.of(caller), keyed=keyed)
    return _shown_secret(made)


@router.get("/deliveries")
def list_webhook_deliveries(
    stack: Stack, caller: CurrentCaller, query: Annotated[DeliveryQuery, Query()]
) -> DeliveryPage:
    """Show all your deliveries, also to addresses that jobs and runs have named, newest first."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.webhook_deliveries.get_page(
        None, query.page, owner=owner, state=query.state, object_id=query.object_id
    )
    return DeliveryPage(deliveries=page.rows, **ends_of(page))


@router.post("/deliveries/{delivery_id}/replay", status_code=status.HTTP_202_ACCEPTED)
def replay_delivery(delivery_id: UUID, stack: Stack, owner: Owner) -> DeliveryView:
    """Send an event once more, under the same id."""
    return stack.webhook_deliveries.replay(delivery_id, owner=owner)


@router.get("/{webhook_id}")
def get_webhook(webhook_id: UUID, stack: Stack, owner: Owner) -> WebhookView:
    """Show one endpoint."""
    return stack.webhooks.get(webhook_id, owner=owner)


@router.patch("/{webhook_id}")
def change_webhook(
    webhook_id: UUID, body: WebhookChanges, stack: Stack, caller: CurrentCaller, owner: Owner
) -> WebhookView:
    """Change an endpoint, or turn it on or off."""
    return stack.webhooks.update(webhook_id, **dict(body), owner=owner, by=Actor.of(caller))


@router.delete("/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_webhook(webhook_id: UUID, stack: Stack, caller: CurrentCaller, owner: Owner) -> Response:
    """Delete an endpoint; what was not delivered yet is not sent."""
    stack.webhooks.delete(webhook_id, owner=owner, by=Actor.of(caller))
    return Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post("/{webhook_id}/rotate")
def rotate_webhook(
    webhook_id: UUID, stack: Stack, caller: CurrentCaller, keyed: Keyed
) -> ShownWebhook:
    """Give an endpoint of yours a new secret; the one it has now signs, too, for a day more."""
    owner = caller.user_id
    return _shown(stack.webhooks.rotate(webhook_id, owner=owner, by=Actor.of(caller), keyed=keyed))


@router.post("/{webhook_id}/test", status_code=status.HTTP_202_ACCEPTED)
def send_test_event(webhook_id: UUID, stack: Stack, owner: Owner, keyed: Keyed) -> DeliveryView:
    """Send an endpoint the event `webhook.test`."""
    return stack.webhook_deliveries.test(webhook_id, owner=owner, keyed=keyed)


@router.get("/{webhook_id}/deliveries")
def list_deliveries_of_webhook(
    webhook_id: UUID, stack: Stack, owner: Owner, query: Annotated[LogQuery, Query()]
) -> DeliveryPage:
    """Show what was sent to an endpoint, newest first."""
    page = stack.webhook_deliveries.get_page(
        webhook_id, query.page, owner=owner, state=query.state, object_id=query.object_id
    )
    return DeliveryPage(deliveries=page.rows, **ends_of(page))


@router.post("/{webhook_id}/deliveries/{delivery_id}/replay", status_code=status.HTTP_202_ACCEPTED)
def replay_delivery_of_webhook(
    webhook_id: UUID, delivery_id: UUID, stack: Stack, owner: Owner
) -> DeliveryView:
    """Send an event to an endpoint once more, under the same id."""
    return stack.webhook_deliveries.replay(delivery_id, endpoint_id=webhook_id, owner=owner)


def _shown(made: IssuedWebhook) -> ShownWebhook:
    return ShownWebhook(**dict(made.webhook), secret=made.secret)


def _shown_secret(made: IssuedSecret) -> ShownSecret:
    return ShownSecret(**dict(made.view), secret=made.secret)
