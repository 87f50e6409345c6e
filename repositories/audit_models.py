"""The table of the audit log. Rows are only added; docs/access.md says who can still change it."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import CheckConstraint, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, new_id, one_of

MAX_DETAIL_BYTES = 16_000
"""Of an entry's detail, as PostgreSQL writes it."""


class ActorKind(StrEnum):
    """By what way somebody acts."""

    USER = "user"
    """A session."""
    KEY = "key"
    """An API key."""
    COMMAND_LINE = "command_line"
    """Somebody with the settings of this deployment at hand."""
    PROXY = "proxy"
    """A trusted proxy says who it is."""
    SYSTEM = "system"
    """A process of the product, by itself."""


class AuditResult(StrEnum):
    """What came of it."""

    OK = "ok"
    REFUSED = "refused"
    """It was not allowed, or not possible; nothing was changed."""
    FAILED = "failed"
    """It was tried, and something broke."""


class AuditEntry(Base):
    """One thing that somebody did."""

    __tablename__ = "audit_log"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    at: Mapped[datetime] = mapped_column(server_default=func.now())
    actor_kind: Mapped[str]
    user_id: Mapped[UUID | None]
    """No foreign key: what somebody did stays on record when the account is gone."""
    email: Mapped[str | None]
    """As it was then."""
    key_id: Mapped[UUID | None]
    action: Mapped[str]
    object_kind: Mapped[str | None]
    object_id: Mapped[str | None]
    address: Mapped[str]
    """Where it came from: a network address, or a login at a machine."""
    result: Mapped[str] = mapped_column(server_default=AuditResult.OK)
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """Names and numbers, of the fields that `services/audit/detail.py` allows."""

    __table_args__ = (
        one_of("actor_kind", ActorKind),
        one_of("result", AuditResult),
        CheckConstraint(
            f"octet_length(CAST(detail AS text)) <= {MAX_DETAIL_BYTES}", name="detail_is_small"
        ),
        Index("audit_log_at", "at"),
        Index("audit_log_user", "user_id", "id"),
        Index("audit_log_action", "action", "id"),
        Index("audit_log_object", "object_id", "id"),
    )
