"""The tables of files: what clients have uploaded, and what batches have written."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, func, text
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, new_id


class File(Base):
    """A file of a user. Its content never changes.

    The content of an uploaded file is in its blocks. That of a batch's output is made from the
    outcomes of its run when somebody reads it.
    """

    __tablename__ = "files"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None]
    """The key that it came with."""
    filename: Mapped[str]
    purpose: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """In bytes; 0 of an output, which has no length before it is made."""
    sha256: Mapped[bytes | None]
    """None of an output."""
    batch_id: Mapped[UUID | None]
    """The batch whose output it is."""
    part: Mapped[str | None]
    """Which of its outputs."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    """Deleted by its user; the reconciler removes it with its blocks."""

    __table_args__ = (
        Index("files_of_user", "user_id", "id"),
        Index("files_of_batch", "batch_id", postgresql_where=text("batch_id IS NOT NULL")),
        Index("files_expiring", "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
        Index("files_deleted", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )


class FileBlock(Base):
    """A piece of an uploaded file. All but the last one have the same length."""

    __tablename__ = "file_blocks"

    file_id: Mapped[UUID] = mapped_column(
        ForeignKey("files.id", ondelete="CASCADE"), primary_key=True
    )
    number: Mapped[int] = mapped_column(primary_key=True)
    """From 0."""
    data: Mapped[bytes]
