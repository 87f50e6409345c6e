"""Message batches: make one, look at it, list, cancel, read its results, and delete it."""

from contextlib import ExitStack
from datetime import datetime
from io import BytesIO
from itertools import chain
from typing import Annotated, Any
from uuid import UUID

from anyio import to_thread
from fastapi import Query, Request, Response
from pydantic import BaseModel, Field

from promptstack.api.http.anthropic.routes import anthropic_router
from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.openai.ids import read_wire_id, wire_id
from promptstack.api.http.peers import origin_of
from promptstack.api.http.transfers import Downloads, SentInBlocks
from promptstack.repositories.batch_models import BatchDoor
from promptstack.repositories.pages import PageQuery
from promptstack.services.anthropic.batch_lines import BATCH_PREFIX, ENDPOINT, lines_of
from promptstack.services.batches.views import BatchStatus, BatchView
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.files.service import BATCH
from promptstack.services.llm.answers import Capability

router = anthropic_router()

WINDOW = "24h"
"""How long a batch may take, as at Anthropic."""
JSON_LINES = "application/x-jsonl"


class BatchBody(BaseModel):
    """The requests of a batch."""

    requests: Annotated[list[Any], Field(min_length=1)]


class BatchQuery(BaseModel):
    """Which batches to list."""

    limit: int = Field(20, ge=1, le=1_000)
    after_id: str | None = None
    before_id: str | None = None


@router.post("/messages/batches")
def create_batch(
    body: BatchBody, request: Request, stack: Stack, caller: CurrentCaller, keyed: Keyed
) -> dict[str, Any]:
    """Accept a batch. Its requests are kept as a file, as those of OpenAI's batches are.

    The same requests are the same file, so one that a client sends again makes no other batch.
    """
    count, most = len(body.requests), stack.settings.max_batch_lines
    if count > most:
        raise InvalidInput(
            f"A batch has at most {most:,} requests (MAX_BATCH_LINES), and this one has {count:,}.",
            pointer="/requests",
        )
    model, lines = lines_of(body.requests)
    stack.model_names.resolve(model, Capability.GENERATION, key_limits=caller.key_limits)
    file = stack.files.create(
        BytesIO(lines),
        filename="requests.jsonl",
        purpose=BATCH,
        user_id=caller.user_id,
        api_key_id=caller.key_id,
        once=True,
    )
    batch = stack.batches.create(
        file.id, ENDPOINT, WINDOW, door=BatchDoor.ANTHROPIC, keyed=keyed, **caller.as_owner
    )
    made = batch_object(batch, request)
    if not batch.counts.total and batch.ended_at is None:  # its file is still to be read
        made["request_counts"]["processing"] = len(body.requests)
    return made


@router.get("/messages/batches")
def list_batches(
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    query: Annotated[BatchQuery, Query()],
) -> dict[str, Any]:
    """Your batches, newest first."""
    after, before = (None if one is None else _id(one) for one in (query.after_id, query.before_id))
    asked = PageQuery(query.limit, after, before)
    page = stack.batches.get_page(caller.user_id, asked, BatchDoor.ANTHROPIC)
    data = [batch_object(one, request) for one in page.rows]
    more = page.before if query.before_id is not None else page.after
    return {
        "data": data,
        "has_more": more is not None,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


@router.get("/messages/batches/{message_batch_id}")
def get_batch(
    message_batch_id: str, request: Request, stack: Stack, caller: CurrentCaller
) -> dict[str, Any]:
    """One batch."""
    found = stack.batches.get(_id(message_batch_id), caller.user_id, BatchDoor.ANTHROPIC)
    return batch_object(found, request)


@router.post("/messages/batches/{message_batch_id}/cancel")
def cancel_batch(
    message_batch_id: str, request: Request, stack: Stack, caller: CurrentCaller
) -> dict[str, Any]:
    """Stop a batch. What was answered is kept."""
    found = stack.batches.cancel(_id(message_batch_id), caller.user_id, BatchDoor.ANTHROPIC)
    return batch_object(found, request)


@router.delete("/messages/batches/{message_batch_id}")
def delete_batch(message_batch_id: str, stack: Stack, caller: CurrentCaller) -> dict[str, str]:
    """Delete a batch that has ended, with its requests and results."""
    batch_id = _id(message_batch_id)
    stack.batches.delete(batch_id, caller.user_id, BatchDoor.ANTHROPIC, only_key=caller.only_key)
    return {"id": wire_id(BATCH_PREFIX, batch_id), "type": "message_batch_deleted"}


@router.get("/messages/batches/{message_batch_id}/results", response_class=Response)
async def get_results(
    message_batch_id: str, request: Request, stack: Stack, caller: CurrentCaller
) -> Response:
    """What became of each request, a line each: first those that have succeeded."""
    downloads: Downloads = request.app.state.downloads
    batch_id = _id(message_batch_id)

    def opened() -> list[Any]:
        batch = stack.batches.get(batch_id, caller.user_id, BatchDoor.ANTHROPIC)
        if batch.ended_at is None:
            raise WrongState("The batch goes on; its results are there when it has ended.")
        parts = [one for one in (batch.output_file_id, batch.error_file_id) if one is not None]
        return [stack.files.opened(one, caller.user_id).content for one in parts]

    with ExitStack() as held:
        held.enter_context(downloads.slots.taken_by(caller.user_id))
        contents = await to_thread.run_sync(opened, limiter=downloads.makers)
        blocks = chain.from_iterable(content.blocks() for content in contents)
        return SentInBlocks(blocks, downloads.makers, held.pop_all(), media_type=JSON_LINES)


def batch_object(batch: BatchView, request: Request) -> dict[str, Any]:
    """A batch as Anthropic writes it."""
    counts, has_ended = batch.counts, batch.ended_at is not None
    left = {BatchStatus.CANCELLED: "canceled", BatchStatus.EXPIRED: "expired"}.get(batch.status)
    sums = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    sums["succeeded"] = counts.completed
    sums["errored"] = counts.failed
    if has_ended and left is not None:
        sums["errored"], sums[left] = counts.failed - counts.left, counts.left
    elif not has_ended:
        sums["processing"] = counts.total - counts.completed - counts.failed
    batch_id = wire_id(BATCH_PREFIX, batch.id)
    is_cancelling = batch.status is BatchStatus.CANCELLING
    address = f"{origin_of(request)}/anthropic/v1/messages/batches/{batch_id}"
    return {
        "id": batch_id,
        "type": "message_batch",
        "processing_status": "ended"
        if has_ended
        else "canceling"
        if is_cancelling
        else "in_progress",
        "request_counts": sums,
        "created_at": _iso(batch.created_at),
        "expires_at": _iso(batch.expires_at),
        "ended_at": _iso(batch.ended_at),
        "cancel_initiated_at": _iso(batch.cancelling_at),
        "archived_at": None,
        "results_url": f"{address}/results" if has_ended else None,
    }


def _id(given: str) -> UUID:
    return read_wire_id(BATCH_PREFIX, given, "batch")


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
