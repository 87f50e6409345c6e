"""The table of idempotency keys. Jobs have their keys in their own rows."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import ForeignKey, Index, func
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base


class IdempotencyKey(Base):
    """What a request with a key of its caller's choice has made."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(primary_key=True)
    action: Mapped[str]
    request_hash: Mapped[str]
    object_id: Mapped[UUID]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("idempotency_keys_created", "created_at"),)
