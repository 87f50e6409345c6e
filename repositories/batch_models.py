"""The table of batches: files of requests that become runs."""

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, new_id, one_of


class BatchDoor(StrEnum):
    """Whose form a batch has: its requests, its results and its ids."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"


class BatchState(StrEnum):
    """Where a batch stands. While its run goes on, the run says more; see `BatchStatus`."""

    VALIDATING = "validating"  # its file is read, and has no run yet
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"


class Batch(Base):
    """A file of requests, what it was asked for with, and what became of it.

    Its requests are the items of a run. When that has ended, its sums are noted here, where they
    stay when the run is deleted.
    """

    __tablename__ = "batches"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None]
    """The key it came with, whose budget pays."""
    door: Mapped[str]
    endpoint: Mapped[str]
    input_file_id: Mapped[UUID]
    """Its file may be deleted."""
    completion_window: Mapped[str]
    """As it was sent."""
    window_seconds: Mapped[float]
    attributes: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))
    """What its caller says of it."""
    outputs_kept_seconds: Mapped[int | None]
    """How long after its end its outputs are deleted. None: with the batch."""
    job_id: Mapped[UUID]
    """Of the job that takes its file in."""
    run_id: Mapped[UUID | None]
    """Chosen before the run is there, so that who takes the file in a second time finds what the
    first one has made. The run may be deleted."""
    model: Mapped[str | None]
    """None until the file was read."""
    state: Mapped[str] = mapped_column(server_default=BatchState.VALIDATING)
    errors: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=text("'[]'"))
    """Why it has failed: `code`, `message`, `line` and `param` each."""

    # Of its run, when it has ended.
    total: Mapped[int] = mapped_column(server_default="0")
    completed: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cached_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Part of the input tokens."""
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")

    output_file_id: Mapped[UUID | None]
    error_file_id: Mapped[UUID | None]
    """Both from the start of its run on."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    in_progress_at: Mapped[datetime | None]
    """When its run was started; a retry starts it again."""
    finalizing_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    expires_at: Mapped[datetime]

    __table_args__ = (
        one_of("door", BatchDoor),
        one_of("state", BatchState),
        Index("batches_of_user", "user_id", "door", "id"),
        Index("batches_of_file", "input_file_id", "id"),
        Index("batches_open", "id", postgresql_where=text("ended_at IS NULL")),
        Index("batches_ended", "ended_at", postgresql_where=text("ended_at IS NOT NULL")),
        Index("batches_run", "run_id", unique=True, postgresql_where=text("run_id IS NOT NULL")),
    )
