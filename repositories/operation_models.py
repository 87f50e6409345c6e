"""The table of operations: what is done to many jobs at once, and how far it has come."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from promptstack.repositories.models import EXPLICIT, Base, Job, one_of


class OperationAction(StrEnum):
    """What is done to each job."""

    RETRY = "retry"
    CANCEL = "cancel"


class Operation(Base):
    """The account of a job of the kind `operation`, which does it: its steps change both."""

    __tablename__ = "operations"

    id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    """Of its job, which has its state and its user."""
    action: Mapped[str]
    wanted: Mapped[dict[str, Any]]
    """The filter, as its caller said it."""
    until: Mapped[datetime] = mapped_column(server_default=func.now())
    """Jobs that were accepted later don't belong to it."""
    cursor: Mapped[UUID | None]
    """The last job that was looked at."""
    matched: Mapped[int | None]
    """None until it has begun."""
    done: Mapped[int] = mapped_column(server_default="0")
    skipped: Mapped[int] = mapped_column(server_default="0")
    """Jobs that had another state by the time it came to them."""
    failed: Mapped[int] = mapped_column(server_default="0")
    failures: Mapped[list[dict[str, str]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """The first of the failed ones, each with its reason."""

    job: Mapped[Job] = relationship(lazy=EXPLICIT)

    __table_args__ = (one_of("action", OperationAction),)
