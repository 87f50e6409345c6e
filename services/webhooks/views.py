"""Endpoints and deliveries as their users see them."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from promptstack.repositories.webhook_models import DeliveryState, WebhookDelivery, WebhookEndpoint
from promptstack.services.webhooks.events import event_name


class WebhookView(BaseModel):
    """An endpoint, without its secret."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    user_id: UUID | None
    url: str
    events: list[str] = Field(description="Types of events; `*` is all.")
    description: str
    enabled: bool
    disabled_at: datetime | None
    disabled_reason: str | None
    failures: int = Field(description="Attempts that failed in a row.")
    previous_until: datetime | None = Field(
        description="Until then, the secret before the last rotation signs as well."
    )
    created_at: datetime

    @classmethod
    def of(cls, endpoint: WebhookEndpoint) -> Self:
        """The view of a row."""
        return cls(
            id=endpoint.id,
            user_id=endpoint.user_id,
            url=endpoint.url or "",
            events=endpoint.events,
            description=endpoint.description,
            enabled=endpoint.disabled_at is None,
            disabled_at=endpoint.disabled_at,
            disabled_reason=endpoint.disabled_reason,
            failures=endpoint.failures,
            previous_until=endpoint.previous_until,
            created_at=endpoint.created_at,
        )


class SecretView(BaseModel):
    """What is known of the secret that signs for addresses which jobs and runs name themselves."""

    model_config = ConfigDict(frozen=True)

    exists: bool
    created_at: datetime | None = None
    previous_until: datetime | None = Field(
        None, description="Until then, the secret before the last rotation signs as well."
    )

    @classmethod
    def of(cls, own: WebhookEndpoint) -> Self:
        """The view of a user's own row."""
        return cls(exists=True, created_at=own.created_at, previous_until=own.previous_until)


class DeliveryAttempt(BaseModel):
    """One request to a receiver."""

    at: datetime
    status: int | None = Field(description="HTTP's; null where there was no answer.")
    error: str | None = Field(description="Why it failed; null if the event was taken.")
    seconds: float = Field(description="How long it took.")


class DeliveryView(BaseModel):
    """An event on its way to one address, and what came of the attempts."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    endpoint_id: UUID
    event_id: str = Field(description="What receivers know the event by: `webhook-id`.")
    type: str
    object_id: UUID = Field(description="Of the job or run that has ended.")
    url: str | None = Field(description="The address that it named; null: the endpoint's.")
    state: DeliveryState
    due_at: datetime | None = Field(
        description="When it is tried next; null where it is over or its endpoint is disabled."
    )
    failures: int
    attempts: list[DeliveryAttempt] = Field(description="The last 20, the oldest first.")
    created_at: datetime
    finished_at: datetime | None

    @classmethod
    def of(cls, delivery: WebhookDelivery) -> Self:
        """The view of a row."""
        return cls(
            id=delivery.id,
            endpoint_id=delivery.endpoint_id,
            event_id=event_name(delivery.event_id),
            type=delivery.type,
            object_id=delivery.object_id,
            url=delivery.url,
            state=DeliveryState(delivery.state),
            due_at=delivery.due_at,
            failures=delivery.failures,
            attempts=[DeliveryAttempt.model_validate(one) for one in delivery.attempts],
            created_at=delivery.created_at,
            finished_at=delivery.finished_at,
        )
