"""Webhooks: who is told of ends, and what they were told."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from promptstack_client.models.base import HasId, Model


class Webhook(HasId):
    """An address that is told of events."""

    user_id: UUID | None = None
    url: str
    events: tuple[str, ...]
    """Types of events; `*` is all."""
    description: str = ""
    enabled: bool = True
    disabled_at: datetime | None = None
    disabled_reason: str | None = None
    failures: int = 0
    """Attempts that failed in a row."""
    previous_until: datetime | None = None
    """Until then, the secret before the last rotation signs as well."""
    created_at: datetime


class ShownWebhook(Webhook):
    """A webhook with its secret, which is shown once."""

    secret: str
    """`standardwebhooks.Webhook(secret).verify(body, headers)` checks an event."""


class SigningSecret(Model):
    """What signs events for the addresses that your jobs and runs name themselves."""

    exists: bool
    created_at: datetime | None = None
    previous_until: datetime | None = None


class ShownSecret(SigningSecret):
    """The secret itself, which is shown once."""

    secret: str


class DeliveryAttempt(Model):
    """One try to tell somebody of an event."""

    at: datetime
    status: int | None = None
    """HTTP's; None where there was no answer."""
    error: str | None = None
    seconds: float = 0.0


class Delivery(HasId):
    """An event on its way to an address."""

    endpoint_id: UUID
    event_id: str
    """The receiver knows it as `webhook-id`: it is the same with each try."""
    type: str
    object_id: UUID
    """The job or run that has ended."""
    url: str | None = None
    state: Literal["pending", "delivered", "failed"] | str
    due_at: datetime | None = None
    failures: int = 0
    attempts: tuple[DeliveryAttempt, ...] = ()
    created_at: datetime
    finished_at: datetime | None = None
