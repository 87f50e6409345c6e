"""Batches as callers see them."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from promptstack.repositories.batch_models import Batch, BatchDoor, BatchState
from promptstack.repositories.batches import BatchOfRun
from promptstack.repositories.run_models import Run


class BatchStatus(StrEnum):
    """Where a batch stands, in OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class BatchError:
    """Why a batch has failed: what is wrong with a line of its file, or with all of it."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True)
class BatchCounts:
    """The requests of a batch. When it has ended, those that have no answer have failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    left: int = field(default=0, compare=False)
    """Of those that have failed when it had ended: left open by its end."""


@dataclass(frozen=True)
class BatchTokens:
    """What the calls of a batch took."""

    input: int
    cached: int
    """Part of the input; known when the batch has ended."""
    output: int


@dataclass(frozen=True)
class BatchView:
    """A batch."""

    id: UUID
    door: BatchDoor
    status: BatchStatus
    endpoint: str
    model: str | None
    input_file_id: UUID
    completion_window: str
    metadata: dict[str, Any] | None
    run_id: UUID | None
    errors: list[BatchError]
    counts: BatchCounts
    tokens: BatchTokens
    output_file_id: UUID | None
    """While it goes on, and then where any request was answered."""
    error_file_id: UUID | None
    """The same for requests that have failed."""
    created_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    cancelling_at: datetime | None
    ended_at: datetime | None
    expires_at: datetime

    def ended_as(self, status: BatchStatus) -> datetime | None:
        """When it ended so; None where it did not."""
        return self.ended_at if self.status is status else None

    @classmethod
    def of(cls, found: BatchOfRun) -> "BatchView":
        """Read it off the ledger's rows."""
        batch, run = found
        counts = _counts(batch, run)
        has_ended = batch.ended_at is not None
        running = None if has_ended or batch.state == BatchState.VALIDATING else run
        tokens = (
            BatchTokens(batch.input_tokens, batch.cached_tokens, batch.output_tokens)
            if running is None
            else BatchTokens(running.input_tokens, 0, running.output_tokens)
        )
        return cls(
            id=batch.id,
            door=BatchDoor(batch.door),
            status=_status(batch),
            endpoint=batch.endpoint,
            model=batch.model,
            input_file_id=batch.input_file_id,
            completion_window=batch.completion_window,
            metadata=batch.attributes,
            run_id=batch.run_id,
            errors=[BatchError(**error) for error in batch.errors],
            counts=counts,
            tokens=tokens,
            output_file_id=None if has_ended and not counts.completed else batch.output_file_id,
            error_file_id=None if has_ended and not counts.failed else batch.error_file_id,
            created_at=batch.created_at,
            in_progress_at=batch.in_progress_at,
            finalizing_at=batch.finalizing_at,
            cancelling_at=batch.cancelling_at,
            ended_at=batch.ended_at,
            expires_at=batch.expires_at,
        )


def _status(batch: Batch) -> BatchStatus:
    if batch.ended_at is None:
        if batch.cancelling_at is not None:
            return BatchStatus.CANCELLING
        if batch.finalizing_at is not None:
            return BatchStatus.FINALIZING
    return BatchStatus(batch.state)


def _counts(batch: Batch, run: Run | None) -> BatchCounts:
    if batch.ended_at is not None:
        left = 0 if run is None else run.total - run.succeeded - run.failed
        return BatchCounts(batch.total, batch.completed, batch.total - batch.completed, left)
    if run is None or batch.state == BatchState.VALIDATING:
        return BatchCounts()  # nobody knows yet how many lines the file has
    return BatchCounts(run.total, run.succeeded, run.failed)
