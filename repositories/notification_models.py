"""The table of mail deliveries: what is known of each time that a mail left."""

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, one_of


class DeliveryState(StrEnum):
    """What is known of one time that a mail was handed to the mail server."""

    STARTED = "started"  # its text may have left
    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # no reply came: the server may have accepted it


class Delivery(Base):
    """One time that a mail was handed to the mail server, written before its text leaves."""

    __tablename__ = "deliveries"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    number: Mapped[int]
    """The job's `attempt` under which it left."""
    recipient: Mapped[str]
    """The address, as it was then."""
    state: Mapped[str] = mapped_column(server_default=DeliveryState.STARTED)
    reply_code: Mapped[int | None]
    reply: Mapped[str | None]
    """What the server said, or why it said nothing. It may quote the mail: for administrators."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        one_of("state", DeliveryState),
        Index("deliveries_job", "job_id"),
        Index(
            "deliveries_uncertain",
            "job_id",
            postgresql_where=text("state IN ('started', 'unknown')"),
        ),
    )
