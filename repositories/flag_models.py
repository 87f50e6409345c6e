"""The table of feature flags. One that stands here goes before one in the settings."""

from datetime import datetime
from typing import Any

from sqlalchemy import CheckConstraint, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base

MAX_RULES_BYTES = 2_000_000
"""Of a flag's rules, as PostgreSQL writes them."""


class FeatureFlag(Base):
    """For whom a feature is on."""

    __tablename__ = "feature_flags"

    name: Mapped[str] = mapped_column(primary_key=True)
    rules: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    """On for whom any of them fits; `services/flags/rules.py` reads them."""
    changed_at: Mapped[datetime] = mapped_column(server_default=func.now())
    changed_by: Mapped[str]
    """An e-mail, or the login of a command."""

    __table_args__ = (
        CheckConstraint(
            f"octet_length(CAST(rules AS text)) <= {MAX_RULES_BYTES}", name="rules_are_small"
        ),
    )
