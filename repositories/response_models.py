"""The table of responses: what OpenAI's Responses API knows of a generation beside its job."""

from typing import Any
from uuid import UUID

from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base


class StoredResponse(Base):
    """A response. Its job has its input, its state and its answer."""

    __tablename__ = "responses"

    id: Mapped[UUID] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    """Of its job, with which it is deleted."""
    asked: Mapped[dict[str, Any]]
    """The body that asked for it, without its input."""
    turns_before: Mapped[int]
    """How many of its job's messages are not its own input: instructions, and the conversation."""
    is_kept: Mapped[bool]
    """Whether it may be asked for later."""
