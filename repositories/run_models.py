"""The tables of runs: what was handed in, and what became of each item.

Items never change and outcomes are only added. An item is open as long as it has no outcome. What
was paid for belongs to the content and not to the item: a vector is in `embeddings`, an answer in
`answers`, and all items with the same content, in any run, use it.
"""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, FetchedValue, ForeignKey, Index, Numeric, Text, func
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from promptstack.repositories.models import Base, new_id, one_of


class RunKind(StrEnum):
    """What a run makes."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class RunState(StrEnum):
    """Where a run stands; docs/architecture.md draws the transitions."""

    PREPARING = "preparing"  # its items are being read
    RUNNING = "running"
    FINALIZING = "finalizing"  # every item has ended
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended."""
        return self not in {RunState.PREPARING, RunState.RUNNING, RunState.FINALIZING}


class Run(Base):
    """A batch: many items under one id."""

    __tablename__ = "runs"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=RunState.PREPARING)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    api_key_id: Mapped[UUID | None]
    """The key it came with; see `Job.api_key_id`."""
    collection_id: Mapped[UUID] = mapped_column(
        ForeignKey("collections.id"), server_default=FetchedValue()
    )
    """Where its items are searched; see `Document.collection_id`."""
    name: Mapped[str]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=sql("'{}'"))
    """Words of the caller's, to find it by."""
    provider: Mapped[str]
    model: Mapped[str]
    parameters: Mapped[dict[str, Any]]
    """Of generations: a `GenerationRequest` without its prompt. Of embeddings: their size, and
    how they are written. Items may have their own."""
    in_flight: Mapped[int]
    """Calls under way at once in each worker."""
    max_retries: Mapped[int]
    max_cost_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    webhook: Mapped[str | None]
    """The address that its end is told to, beside its user's endpoints."""

    output_url: Mapped[str | None]
    """Where its output is written in object storage when it has ended."""
    output_written_at: Mapped[datetime | None]

    total: Mapped[int] = mapped_column(server_default="0")
    last_position: Mapped[int] = mapped_column(server_default="0")
    next_position: Mapped[int] = mapped_column(server_default="0")
    """Items from here on belong to no shard yet."""
    served_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When it last got a shard: the run that waits longest is next."""

    # Of its outcomes; changed with them, in the same transactions.
    succeeded: Mapped[int] = mapped_column(server_default="0")
    failed: Mapped[int] = mapped_column(server_default="0")
    reused: Mapped[int] = mapped_column(server_default="0")
    """Items that succeeded and cost nothing, as their content was paid for before."""
    # Of its provider calls.
    calls: Mapped[int] = mapped_column(server_default="0")
    input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cost_usd: Mapped[Decimal] = mapped_column(Numeric(18, 10), server_default="0")
    """Of the calls whose cost is known."""
    unknown_cost: Mapped[int] = mapped_column(server_default="0")
    """Calls of unknown cost: the model has no price, or nobody knows whether they were billed."""
    reserved_usd: Mapped[Decimal] = mapped_column(Numeric(18, 10), server_default="0")
    """Upper bound of the cost of calls whose cost isn't known (yet)."""
    limiter_wait_seconds: Mapped[float] = mapped_column(server_default="0")
    version: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Raised by every change, so that of two snapshots of a run the newer one is known."""

    error_code: Mapped[str | None]
    error: Mapped[str | None]
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    touched_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """While the source is read: when that was last noted."""
    started_at: Mapped[datetime | None]
    """Of the last start: a retry starts the run again."""
    finished_at: Mapped[datetime | None]

    __table_args__ = (
        one_of("kind", RunKind),
        one_of("state", RunState),
        Index("runs_open", "served_at", postgresql_where=sql("finished_at IS NULL")),
        Index(
            "runs_open_of_user",
            "user_id",
            "served_at",
            postgresql_where=sql("finished_at IS NULL"),
        ),
        Index("runs_ended", "finished_at", postgresql_where=sql("finished_at IS NOT NULL")),
        Index("runs_of_user", "user_id", "id"),
        Index("runs_of_collection", "collection_id", "id"),
    )


class PrunedRun(Base):
    """A deleted run that still has items: there may be millions."""

    __tablename__ = "pruned_runs"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    drops_vectors: Mapped[bool] = mapped_column(server_default=sql("false"))
    """Whether vectors go with its items that nobody else uses: a person has deleted it."""


class Item(Base):
    """One input of a run. It never changes.

    It has no foreign key to its run: checking that a million times costs more than storing items.
    """

    __tablename__ = "items"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    """The number of the line or record in its source, from 1."""
    custom_id: Mapped[str | None]
    """None if it could not be read; such an item has failed."""
    content_hash: Mapped[bytes | None]
    """The key of its vector or answer. None if there is nothing to ask for."""
    text: Mapped[str | None]
    messages: Mapped[list[Any] | None] = mapped_column(JSONB)
    size: Mapped[int] = mapped_column(server_default="0")
    """Of its text or messages, and its parameters, in UTF-8 bytes."""
    attributes: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    parameters: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    """Where its request asks for others than the run: all of them, in place of the run's."""

    __table_args__ = (
        Index("items_content", "content_hash", postgresql_where=sql("content_hash IS NOT NULL")),
    )


class ItemTries(Base):
    """How often an open item has failed. It bounds the tries, whichever worker makes them."""

    __tablename__ = "item_tries"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    tries: Mapped[int]


class Outcome(Base):
    """How an item ended. An item without an outcome is open."""

    __tablename__ = "outcomes"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    is_reused: Mapped[bool] = mapped_column(server_default=sql("false"))
    error_code: Mapped[str | None]
    """None if it succeeded."""
    error: Mapped[str | None]
    detail: Mapped[str | None]
    """The provider's words, or an answer that was not accepted. Only the owner sees it."""


class Answer(Base):
    """What a model answered, found by what it was asked."""

    __tablename__ = "answers"

    provider: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    content_hash: Mapped[bytes] = mapped_column(primary_key=True)
    """Of all that was asked and of the user, so that no user gets another's answer."""
    result: Mapped[dict[str, Any]]
    used_at: Mapped[datetime] = mapped_column(server_default=func.now())
    """When a run last used it."""

    __table_args__ = (Index("answers_used", "used_at"),)
