"""The tables of webhooks: where events are sent, and what became of each delivery.

The ends of jobs and runs become deliveries by a trigger, in the transaction of the end
(`migrations/versions/0035_webhooks.py`).
"""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, ForeignKey, Index, Text, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, new_id, one_of

OWNER = "coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"


class DeliveryState(StrEnum):
    """What became of one event at one endpoint."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    """It was tried as often as it is."""


class WebhookEndpoint(Base):
    """An address that a user's events are sent to, and the secret that signs them."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    """None: of the work of callers without a user."""
    url: Mapped[str | None]
    """None in one row of a user: its secret signs for the addresses that jobs and runs name
    themselves."""
    events: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default="{*}")
    """Types of events; `*` is all."""
    description: Mapped[str] = mapped_column(server_default="")
    secret: Mapped[str]
    """Encrypted; see `services/webhooks/secrets.py`."""
    previous_secret: Mapped[str | None]
    previous_until: Mapped[datetime | None]
    """Until then, the secret before the last rotation signs as well."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed in a row."""
    judged_at: Mapped[datetime | None]
    """When an attempt was last counted: failures of attempts that had begun before are not."""
    rests_until: Mapped[datetime | None]
    """Nothing is sent before, as so many have failed."""
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        Index("webhook_endpoints_of_user", text(OWNER), "id"),
        Index(
            "webhook_endpoints_of_objects",
            text(OWNER),
            unique=True,
            postgresql_where=text("url IS NULL"),
        ),
    )


class WebhookDelivery(Base):
    """An event on its way to an endpoint, and the log of the attempts.

    It has no foreign key to its endpoint: the end of a job must not fail since somebody deletes an
    endpoint at the same moment.
    """

    __tablename__ = "webhook_deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    endpoint_id: Mapped[UUID]
    event_id: Mapped[UUID]
    """The same at every endpoint and in every attempt, so that a receiver knows it again."""
    type: Mapped[str]
    object_id: Mapped[UUID]
    """Of the job or run that has ended."""
    url: Mapped[str | None]
    """The address that the job or run has named; None: that of the endpoint."""
    host: Mapped[str] = mapped_column(server_default="")
    """Of this address: deliveries to one that hangs must not hold up the others."""
    state: Mapped[str] = mapped_column(server_default=DeliveryState.PENDING)
    due_at: Mapped[datetime | None]
    """When it is tried next. While a worker tries it: when another one may, as that one is dead.
    None where it is over, or its endpoint is disabled."""
    claims: Mapped[int] = mapped_column(server_default="0")
    """How often a worker took it: the fence of what came of it."""
    failures: Mapped[int] = mapped_column(server_default="0")
    attempts: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    """Each with its time, its HTTP status or error, and how long it took."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        one_of("state", DeliveryState),
        Index("webhook_deliveries_due", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index(
            "webhook_deliveries_due_in_order",
            "endpoint_id",
            "due_at",
            "host",
            postgresql_where=text("due_at IS NOT NULL"),
        ),
        Index("webhook_deliveries_created", "created_at"),
        Index("webhook_deliveries_of", "endpoint_id", "id"),
    )
