"""The tables of jobs: workers, jobs, attempts; and the base that all tables share."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import uuid_utils.compat
from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Numeric,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from promptstack.config.names import Queue

EXPLICIT: Final = "raise_on_sql"
"""How relations are loaded: only where a repository says so. A row of a list that would ask for
them by itself, a query a row, is an error."""


def new_id() -> UUID:
    """A UUID of version 7: its order is the order of creation, which keeps indexes compact."""
    return uuid_utils.compat.uuid7()


class Base(DeclarativeBase):
    """Base of all models. The database sets all times, so workers' clocks do not matter."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy reads it as a class attribute
        datetime: DateTime(timezone=True),
        str: Text,
        dict[str, Any]: JSONB,
    }


class JobKind(StrEnum):
    """What a job makes."""

    GENERATION = "generation"
    EMBEDDING = "embedding"
    SHARD = "shard"
    """The answers or vectors of a slice of a run."""
    FINALIZATION = "finalization"
    """The end of a run."""
    NOTIFICATION = "notification"
    """A mail to a user."""
    OPERATION = "operation"
    """What is done to many jobs at once."""
    BATCH = "batch"
    """A batch whose file is taken in: what it asks becomes a run."""
    VECTORS = "vectors"
    """The vectors of inputs, for whoever waits for them: no document, and found by no search."""


class JobState(StrEnum):
    """Where a job stands; docs/architecture.md draws the transitions."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def is_final(self) -> bool:
        """Whether the job has ended."""
        return self not in {JobState.QUEUED, JobState.RUNNING}


class AttemptState(StrEnum):
    """What is known of one call to a provider."""

    STARTED = "started"  # the request may have left
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # its worker died


class Billing(StrEnum):
    """What is known of a call's money."""

    UNKNOWN = "unknown"  # it may have left, and nobody heard an answer
    NOT_BILLED = "not_billed"  # it never left, or the provider refused it
    BILLED = "billed"  # it was answered


def one_of(column: str, states: type[StrEnum]) -> CheckConstraint:
    """A check that a column holds one of these."""
    names = ", ".join(f"'{state}'" for state in states)
    return CheckConstraint(f"{column} IN ({names})", name=f"{column}_known")


class Worker(Base):
    """A worker process, alive as long as its heartbeat is fresh."""

    __tablename__ = "workers"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    providers: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    """Those across a network that it can ask; None where it doesn't say."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    heartbeat_at: Mapped[datetime] = mapped_column(server_default=func.now())


class Watch(Base):
    """What the reconcilers of all workers have seen of the ledger itself: one row."""

    __tablename__ = "watch"

    id: Mapped[int] = mapped_column(primary_key=True, server_default=text("1"))
    last_round: Mapped[float]
    """In seconds since 1970, by the database's clock."""
    blind: Mapped[list[tuple[float | None, float]]] = mapped_column(JSONB)
    """Spans in which nobody saw the ledger, from and to; from None is for ever."""

    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)


class TurnsOf(Base):
    """Whose turn it was at something that users share; see `services/sharing/turns.py`."""

    __tablename__ = "turns"

    shared: Mapped[str] = mapped_column(primary_key=True)
    last: Mapped[UUID | None]
    credits: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'"))
    """What each user has left of their turns, by their id; less than 0 is owed."""


_IS_BULK = "queue IN ('generation-bulk', 'embeddings-bulk')"
IS_HELD = (
    f"state = 'queued' AND rung_at IS NULL AND not_before IS NULL AND run_id IS NULL AND {_IS_BULK}"
)
"""Whether a job waits for its user's turn: see `services/sharing/bulk_jobs.py`."""
IS_NOT_HELD = f"(not_before IS NOT NULL OR run_id IS NOT NULL OR NOT {_IS_BULK})"
"""The opposite, of a queued job without a message. Word by word as in the index `jobs_unsent`."""


class Job(Base):
    """One unit that a caller enqueued."""

    __tablename__ = "jobs"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    kind: Mapped[str]
    queue: Mapped[str] = mapped_column(server_default=Queue.GENERATION)
    """Where its message waits: what was sent to one queue is taken in order."""
    state: Mapped[str] = mapped_column(server_default=JobState.QUEUED)
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    """Whose shard it is."""
    api_key_id: Mapped[UUID | None]
    """The key it came with, whose budget pays. It refers to nothing: a key's row is never deleted
    but with its user's, and then the job goes, too."""
    provider: Mapped[str]
    model: Mapped[str]
    request: Mapped[dict[str, Any]] = mapped_column(deferred=True)
    """Up to MAX_TEXT_BYTES: loaded by the claim alone, and not by every look at the job."""
    request_hash: Mapped[str]
    is_checked: Mapped[bool] = mapped_column(server_default=text("true"))
    """False while it is as a caller gave it, where our checks don't run: in SQL, or in a message. A
    worker checks it before any call."""
    is_followed: Mapped[bool] = mapped_column(server_default=text("false"))
    """Whether another service's Celery has still to be told its end: see `CeleryMessage`."""
    idempotency_key: Mapped[str | None]
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text), server_default=text("'{}'"))
    """Words of the caller's, to find it by."""
    webhook: Mapped[str | None]
    """The address that its end is told to, beside its user's endpoints."""
    result: Mapped[dict[str, Any] | None]
    current: Mapped[int] = mapped_column(server_default="0")
    total: Mapped[int] = mapped_column(server_default="1")

    attempt: Mapped[int] = mapped_column(server_default="0")
    """Raised by every claim: the fencing token."""
    failures: Mapped[int] = mapped_column(server_default="0")
    """Attempts that failed for the job's own account; bounded by max_retries."""
    max_retries: Mapped[int]
    deaths: Mapped[int] = mapped_column(server_default="0")
    """Workers that died one after the other with it in hand, and nothing of it done meanwhile."""
    error_code: Mapped[str | None]
    error: Mapped[str | None]

    worker_id: Mapped[UUID | None]
    not_before: Mapped[datetime | None]
    expires_at: Mapped[datetime]
    published_at: Mapped[datetime | None] = mapped_column("rung_at")
    published_epoch: Mapped[str | None] = mapped_column("rung_epoch")
    """The broker epoch in which its message was sent; another epoch means the message is gone."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    attempts: Mapped[list["Attempt"]] = relationship(
        back_populates="job",
        order_by="(Attempt.number, Attempt.call)",
        passive_deletes=True,
        lazy=EXPLICIT,
    )

    __table_args__ = (
        one_of("kind", JobKind),
        one_of("queue", Queue),
        one_of("state", JobState),
        Index(
            "jobs_idempotency_key",
            "user_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
            # Callers without a user (the command line, Python) share one space of keys.
            postgresql_nulls_not_distinct=True,
        ),
        Index("jobs_open", "state", postgresql_where=text("finished_at IS NULL")),
        Index("jobs_deadline", "expires_at", postgresql_where=text("finished_at IS NULL")),
        Index("jobs_ended", "finished_at", postgresql_where=text("finished_at IS NOT NULL")),
        # What `take_unpublished` asks every second; see there.
        Index(
            "jobs_unsent",
            "not_before",
            postgresql_where=text(f"state = 'queued' AND rung_at IS NULL AND {IS_NOT_HELD}"),
        ),
        Index("jobs_notifications", "id", postgresql_where=text("kind = 'notification'")),
        Index(
            "jobs_held",
            "queue",
            text("coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "id",
            postgresql_where=text(IS_HELD),
        ),
        Index(
            "jobs_rung",
            "rung_epoch",
            "queue",
            "rung_at",
            postgresql_where=text("state = 'queued'"),
        ),
        Index(
            "jobs_taken",
            "queue",
            "rung_at",
            postgresql_where=text("state <> 'queued' AND rung_at IS NOT NULL"),
        ),
        # What `OutboxRepository.next_waiting` and `users_waiting` ask every second.
        Index(
            "jobs_waiting_of_user",
            "provider",
            "model",
            text("coalesce(user_id, '00000000-0000-0000-0000-000000000000'::uuid)"),
            "not_before",
            postgresql_where=text("state = 'queued' AND error_code = 'RATE_LIMIT_WAIT'"),
        ),
        Index("jobs_of_user", "user_id", "id"),
        # What lists of jobs are filtered by; see `conditions_of`.
        Index(
            "jobs_ended_badly",
            "user_id",
            "id",
            postgresql_where=text("state IN ('failed', 'cancelled', 'expired')"),
        ),
        Index(
            "jobs_with_error",
            "user_id",
            "error_code",
            "id",
            postgresql_where=text("error_code IS NOT NULL"),
        ),
        Index("jobs_of_model", "user_id", "kind", "provider", "model"),
        Index(
            "jobs_with_tag",
            "tags",
            postgresql_using="gin",
            postgresql_where=text("tags <> '{}'"),
        ),
        Index("jobs_created", "created_at"),
        Index("jobs_of_run", "run_id", postgresql_where=text("run_id IS NOT NULL")),
        Index(
            "jobs_of_run_open",
            "run_id",
            postgresql_where=text("run_id IS NOT NULL AND finished_at IS NULL"),
        ),
        Index(
            "jobs_of_run_failed",
            "run_id",
            postgresql_where=text(
                "run_id IS NOT NULL AND state IN ('failed', 'cancelled', 'expired')"
            ),
        ),
        Index("jobs_of_worker", "worker_id", postgresql_where=text("state = 'running'")),
        Index(
            "jobs_followed",
            "finished_at",
            postgresql_where=text("is_followed AND finished_at IS NOT NULL"),
        ),
    )


class CeleryMessage(Base):
    """What another service's Celery has sent with a job, until it was told the job's end."""

    __tablename__ = "celery_messages"

    job_id: Mapped[UUID] = mapped_column(
        ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True
    )
    options: Mapped[dict[str, Any]]
    """The next tasks of its chain, its chord, its callbacks, and the like."""
    asked_at: Mapped[datetime | None]
    """When a message was sent to tell it."""
    taken_at: Mapped[datetime | None]
    """When a worker began to tell it."""


class Attempt(Base):
    """One call to a provider: written before the request leaves, settled after it."""

    __tablename__ = "attempts"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    job_id: Mapped[UUID | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    """None when the job was pruned: what was paid for it stays on record. Also of a search, which
    is none's."""
    user_id: Mapped[UUID | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    api_key_id: Mapped[UUID | None]
    number: Mapped[int]
    """The job's `attempt` under which the call was made."""
    call: Mapped[int]
    """Position of the call within that attempt, from 0: a document needs several."""
    worker_id: Mapped[UUID]
    provider: Mapped[str]
    model: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=AttemptState.STARTED)
    billing: Mapped[str] = mapped_column(server_default=Billing.UNKNOWN)
    items: Mapped[int] = mapped_column(server_default="1")
    expected_tokens: Mapped[int | None]
    """Input and output together, as far as could be known before."""
    expected_cost_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    reserved_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    """What budgets count for it until its cost is known: the most it can cost. None where no budget
    counts it."""
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    """Part of the input tokens."""
    cost_usd: Mapped[Decimal | None] = mapped_column(Numeric(18, 10))
    """None where it isn't known."""
    latency_seconds: Mapped[float | None]
    limiter_wait_seconds: Mapped[float | None]
    provider_request_id: Mapped[str | None]
    error_code: Mapped[str | None]
    error: Mapped[str | None]
    detail: Mapped[str | None]
    """What the provider said in its own words. May quote the prompt: shown to the owner only."""
    note: Mapped[str | None]
    """What was odd in the form of an answer and counts as unknown: names of fields, no content."""
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]

    job: Mapped[Job | None] = relationship(back_populates="attempts", lazy=EXPLICIT)

    __table_args__ = (
        one_of("state", AttemptState),
        one_of("billing", Billing),
        UniqueConstraint("job_id", "number", "call", name="attempts_job_number_call_key"),
        Index("attempts_started", "started_at", postgresql_using="brin"),
        Index("attempts_jobless", "started_at", postgresql_where=text("job_id IS NULL")),
        Index(
            "attempts_alone",
            "started_at",
            postgresql_where=text("job_id IS NULL AND state = 'started'"),
        ),
        Index("attempts_unsettled", "id", postgresql_where=text("billing = 'unknown'")),
        Index("attempts_of_user", "user_id", postgresql_where=text("user_id IS NOT NULL")),
        Index("attempts_of_key", "api_key_id", postgresql_where=text("api_key_id IS NOT NULL")),
    )
