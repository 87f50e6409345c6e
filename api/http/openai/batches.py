"""Batches: make one of a file, look at it, list, cancel and retry them."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.openai.ids import read_wire_id, unix, wire_id
from promptstack.api.http.openai.routes import openai_router
from promptstack.repositories.batch_models import BatchDoor
from promptstack.repositories.pages import PageQuery
from promptstack.services.batches.views import BatchStatus, BatchView
from promptstack.services.errors import InvalidInput, NotFound

router: APIRouter = openai_router()

BATCH_PREFIX, FILE_PREFIX = "batch_", "file-"
LEAST_SECONDS, MOST_SECONDS = 3_600, 2_592_000
"""Of an output's life, as OpenAI bounds it: an hour to 30 days."""


class OutputsExpire(BaseModel):
    """How long the outputs are kept."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_SECONDS, le=MOST_SECONDS)


class BatchBody(BaseModel):
    """What to make a batch of. Fields that are not known here are not read."""

    model_config = ConfigDict(extra="ignore")

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: OutputsExpire | None = None


class BatchListQuery(BaseModel):
    """Which batches to list."""

    model_config = ConfigDict(extra="ignore")

    after: str | None = None
    limit: int = Field(20, ge=1, le=100)


@router.post("/batches")
def create_batch(body: BatchBody, stack: Stack, caller: CurrentCaller, keyed: Keyed) -> Any:
    """Accept a batch. A worker reads its file."""
    try:
        file_id = read_wire_id(FILE_PREFIX, body.input_file_id, "file")
    except NotFound as error:
        raise InvalidInput(str(error), pointer="/input_file_id") from error
    kept = body.output_expires_after
    batch = stack.batches.create(
        file_id,
        body.endpoint,
        body.completion_window,
        body.metadata,
        outputs_kept_seconds=None if kept is None else kept.seconds,
        keyed=keyed,
        **caller.as_owner,
    )
    return batch_object(batch)


@router.get("/batches")
def list_batches(
    stack: Stack, caller: CurrentCaller, query: Annotated[BatchListQuery, Query()]
) -> Any:
    """Your batches, newest first."""
    after = None if query.after is None else read_wire_id(BATCH_PREFIX, query.after, "batch")
    page = stack.batches.get_page(caller.user_id, PageQuery(query.limit, after))
    return _list([batch_object(batch) for batch in page.rows], has_more=page.after is not None)


@router.get("/batches/{batch_id}")
def get_batch(batch_id: str, stack: Stack, caller: CurrentCaller) -> Any:
    """One batch."""
    one = read_wire_id(BATCH_PREFIX, batch_id, "batch")
    return batch_object(stack.batches.get(one, caller.user_id, BatchDoor.OPENAI))


@router.post("/batches/{batch_id}/cancel")
def cancel_batch(batch_id: str, stack: Stack, caller: CurrentCaller) -> Any:
    """Stop a batch. What was answered is kept."""
    one = read_wire_id(BATCH_PREFIX, batch_id, "batch")
    return batch_object(stack.batches.cancel(one, caller.user_id, BatchDoor.OPENAI))


@router.post("/batches/{batch_id}/retry")
def retry_batch(batch_id: str, stack: Stack, caller: CurrentCaller) -> Any:
    """Try again the requests of an ended batch that have no answer. OpenAI has no such route."""
    one = read_wire_id(BATCH_PREFIX, batch_id, "batch")
    retried = stack.batches.retry(one, caller.user_id, BatchDoor.OPENAI, only_key=caller.only_key)
    return batch_object(retried)


def batch_object(batch: BatchView) -> dict[str, Any]:
    """A batch as OpenAI writes it."""
    counts, tokens = batch.counts, batch.tokens
    errors = [vars(error) for error in batch.errors]
    return {
        "id": wire_id(BATCH_PREFIX, batch.id),
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": wire_id(FILE_PREFIX, batch.input_file_id),
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id and wire_id(FILE_PREFIX, batch.output_file_id),
        "error_file_id": batch.error_file_id and wire_id(FILE_PREFIX, batch.error_file_id),
        "created_at": unix(batch.created_at),
        "in_progress_at": unix(batch.in_progress_at),
        "expires_at": unix(batch.expires_at),
        "finalizing_at": unix(batch.finalizing_at),
        "completed_at": unix(batch.ended_as(BatchStatus.COMPLETED)),
        "failed_at": unix(batch.ended_as(BatchStatus.FAILED)),
        "expired_at": unix(batch.ended_as(BatchStatus.EXPIRED)),
        "cancelling_at": unix(batch.cancelling_at),
        "cancelled_at": unix(batch.ended_as(BatchStatus.CANCELLED)),
        "request_counts": {
            "total": counts.total,
            "completed": counts.completed,
            "failed": counts.failed,
        },
        "usage": {
            "input_tokens": tokens.input,
            "input_tokens_details": {"cached_tokens": tokens.cached},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": tokens.input + tokens.output,
        },
        # Never null: a client reads all batches of a list as having some.
        "metadata": batch.metadata or {},
    }


def _list(data: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
