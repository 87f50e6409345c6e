"""Operations as callers ask for them and see them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobState
from promptstack.repositories.operation_models import Operation, OperationAction
from promptstack.services.audit.actor import Actor


class OperationRequest(BaseModel):
    """What an operation's job does, as it stands in the ledger."""

    model_config = ConfigDict(frozen=True)

    action: OperationAction
    wanted: JobFilter
    actor: Actor | None
    """Who asked for it; what they do to jobs of others is audited."""


class OperationFailure(BaseModel):
    """A job that it could not be done to."""

    job_id: UUID
    error: str


class OperationView(BaseModel):
    """An operation as its caller may see it."""

    model_config = ConfigDict(frozen=True)

    id: UUID
    action: OperationAction
    state: JobState
    filter: dict[str, Any]
    """As it was asked for."""
    matched: int | None
    """Jobs that the filter matches; null until it has begun."""
    done: int
    skipped: int
    """Jobs that had changed their state by the time it came to them."""
    failed: int
    failures: list[OperationFailure]
    """The first of the failed ones, each with its reason."""
    error_code: str | None
    error: str | None
    """Why it ended before it was done."""
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @classmethod
    def of(cls, operation: Operation) -> "OperationView":
        """Read it off the ledger's rows."""
        job = operation.job
        of_account = ("id", "action", "matched", "done", "skipped", "failed", "failures")
        of_job = ("state", "error_code", "error", "created_at", "started_at", "finished_at")
        return cls(
            filter=operation.wanted,
            **{name: getattr(operation, name) for name in of_account},
            **{name: getattr(job, name) for name in of_job},
        )
