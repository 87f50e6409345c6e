"""The table of budgets: spend caps, and what was spent under them."""

from datetime import date
from decimal import Decimal
from uuid import UUID

from sqlalchemy import CheckConstraint, Computed, ForeignKey, Numeric, false
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base

DEPLOYMENT = UUID(int=0)
"""The subject of the whole deployment's budget."""


class Budget(Base):
    """The spend caps of one subject, an API key, a user or the deployment, and what it has spent.

    Every call of a subject that has a row here adds to its sums, in the transactions that record
    and settle its attempt. Of the others nothing is counted.
    """

    __tablename__ = "budgets"

    subject: Mapped[UUID] = mapped_column(
        Computed(f"coalesce(user_id, api_key_id, '{DEPLOYMENT}'::uuid)", persisted=True),
        primary_key=True,
    )
    """The id of the user or key; that of neither is the deployment's."""
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id", ondelete="CASCADE"))
    day_cap_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    month_cap_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    total_cap_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    day: Mapped[date]
    """The day, in UTC, of which `day_usd` is the sum; its month is that of `month_usd`."""
    day_usd: Mapped[Decimal] = mapped_column(Numeric(20, 10), server_default="0")
    """Of calls that began on this day: their cost, and the most it can be where it isn't known."""
    month_usd: Mapped[Decimal] = mapped_column(Numeric(20, 10), server_default="0")
    total_usd: Mapped[Decimal] = mapped_column(Numeric(20, 10), server_default="0")

    is_counted: Mapped[bool] = mapped_column(server_default=false())
    """Whether the sums hold what was spent before. A process may have died before they did."""

    __table_args__ = (CheckConstraint("user_id IS NULL OR api_key_id IS NULL", name="one_subject"),)
