"""Runs: start, watch, cancel, retry and read them."""

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar
from uuid import UUID

from fastapi import APIRouter, Query, Response, status
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from promptstack.api.http.auth import AskedOwner, CurrentCaller, Owner, Stack
from promptstack.api.http.paging import PageEnds, PageParameters, ends_of
from promptstack.api.http.run_bodies import (
    AT_ONCE_ANSWERS,
    UPLOADED_BODIES,
    DryRun,
    EmbeddingRunBody,
    GenerationRunBody,
    NewRunRequest,
)
from promptstack.api.http.uploads import UploadRoute
from promptstack.api.http.waiting import Wait
from promptstack.repositories.run_models import RunKind, RunState
from promptstack.repositories.runs.results import FailedItem, Produced
from promptstack.services.audit.actor import Actor
from promptstack.services.runs.views import RunView
from promptstack.services.validation.bounds import Dollars, TagName, Time

router = APIRouter(prefix="/runs", tags=["runs"], route_class=UploadRoute)

PAGE_BYTES = 2_000_000
"""A page ends after so many. As JSON, with vectors in digits, it is six times as long."""
READ_AT_ONCE = 50
"""Rows read together. Some may not fit on the page."""
EMBEDDING, GENERATION = RunKind.EMBEDDING, RunKind.GENERATION
Row = TypeVar("Row", Produced, FailedItem)


class RunRetry(BaseModel):
    """How to retry a run."""

    model_config = ConfigDict(extra="forbid")

    max_cost_usd: Dollars | None = Field(None, description="A new limit of the run's cost.")


class Cursor(BaseModel):
    """Which page to read."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1_000, description="Items on a page; fewer where long.")
    after: int = Field(0, ge=0, description="`after` of the page before.")


class RunQuery(PageParameters[UUID]):
    """Which runs to list."""

    state: RunState | None = None
    kind: RunKind | None = None
    tag: TagName | None = None
    since: Time | None = Field(None, description="Handed in at this time or later.")
    until: Time | None = Field(None, description="Handed in before this time.")
    owner: AskedOwner = None


class RunPage(PageEnds[UUID]):
    """One page of runs, newest first."""

    runs: list[RunView]


class ResultPage(BaseModel):
    """Items that have succeeded, in order."""

    results: list[dict[str, JsonValue]]
    """`position`, `custom_id`, `metadata`, and `vector` or `answer`."""
    after: int | None
    """Send it as `after` to get the next page; null on the last one."""


class FailurePage(BaseModel):
    """Items that have failed, in order."""

    failures: list[FailedItem]
    """Each with its reason and what the provider said."""
    after: int | None


@router.post(
    "/embeddings",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RunView,
    responses=AT_ONCE_ANSWERS,
    openapi_extra=UPLOADED_BODIES,
)
def create_embedding_run(
    body: EmbeddingRunBody, new: NewRunRequest, dry_run: DryRun = False
) -> Response:
    """Accept a run that embeds each item; `Location` says where to ask for it.

    The items stand in the JSON, or are the lines or rows of a file: of one that is the body itself,
    with the fields of the JSON as its query, or `file` of a form with the fields as its others.
    """
    return new.answer(body, EMBEDDING, is_dry=dry_run)


@router.post(
    "/generations",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=RunView,
    responses=AT_ONCE_ANSWERS,
    openapi_extra=UPLOADED_BODIES,
)
def create_generation_run(
    body: GenerationRunBody, new: NewRunRequest, dry_run: DryRun = False
) -> Response:
    """Accept a run that answers each item; `Location` says where to ask for it.

    The items stand in the JSON, or are the lines or rows of a file, as of a run of embeddings.
    """
    return new.answer(body, GENERATION, is_dry=dry_run)


@router.get("")
def list_runs(stack: Stack, caller: CurrentCaller, query: Annotated[RunQuery, Query()]) -> RunPage:
    """Show your runs, newest first."""
    owner = stack.owners.choose(caller, query.owner)
    page = stack.runs.get_page(
        query.page,
        owner,
        state=query.state,
        kind=query.kind,
        tag=query.tag,
        since=query.since,
        until=query.until,
    )
    return RunPage(runs=page.rows, **ends_of(page))


@router.get("/{run_id}", response_model=RunView)
def get_run(run_id: UUID, stack: Stack, owner: Owner, wait: Wait) -> Response:
    """Show a run."""
    return wait.for_run(stack.runs.get(run_id, owner))


@router.post("/{run_id}/cancel")
def cancel_run(run_id: UUID, stack: Stack, owner: Owner, caller: CurrentCaller) -> RunView:
    """Stop a run: no call begins any more; what is produced and under way is kept."""
    return stack.runs.cancel(run_id, owner, actor=Actor.of(caller))


@router.post("/{run_id}/retry")
def retry_run(
    run_id: UUID,
    stack: Stack,
    owner: Owner,
    caller: CurrentCaller,
    how: RunRetry | None = None,
) -> RunView:
    """Try again what failed or was never tried; what succeeded isn't paid for again."""
    max_cost = how.max_cost_usd if how else None
    return stack.runs.retry(
        run_id, owner, max_cost, only_key=caller.only_key, actor=Actor.of(caller)
    )


@router.post("/{run_id}/resume")
def resume_run(
    run_id: UUID,
    stack: Stack,
    owner: Owner,
    caller: CurrentCaller,
    how: RunRetry | None = None,
) -> RunView:
    """Go on with a run that ended before all its items were tried; what failed stays failed."""
    max_cost = how.max_cost_usd if how else None
    return stack.runs.resume(
        run_id, owner, max_cost, only_key=caller.only_key, actor=Actor.of(caller)
    )


@router.delete("/{run_id}", status_code=status.HTTP_204_NO_CONTENT)
def delete_run(run_id: UUID, stack: Stack, owner: Owner, caller: CurrentCaller) -> None:
    """Delete a run that has ended, its items, and the vectors that nobody else uses."""
    stack.runs.delete(run_id, owner, only_key=caller.only_key, actor=Actor.of(caller))


@router.get("/{run_id}/results")
def get_results(
    run_id: UUID, stack: Stack, owner: Owner, cursor: Annotated[Cursor, Query()]
) -> ResultPage:
    """Show what a run has produced so far."""
    stack.runs.get(run_id, owner)
    found = stack.run_results.produced(
        run_id, after=cursor.after, page=min(cursor.limit + 1, READ_AT_ONCE)
    )
    shown, after = _page(found, cursor.limit)
    return ResultPage(results=list(map(_result, shown)), after=after)


@router.get("/{run_id}/failures")
def get_failures(
    run_id: UUID, stack: Stack, owner: Owner, cursor: Annotated[Cursor, Query()]
) -> FailurePage:
    """Show which items of a run have failed so far, and why."""
    stack.runs.get(run_id, owner)
    found = stack.run_results.failed(
        run_id, after=cursor.after, page=min(cursor.limit + 1, READ_AT_ONCE)
    )
    shown, after = _page(found, cursor.limit)
    return FailurePage(failures=shown, after=after)


def _page(found: Iterator[Row], limit: int) -> tuple[list[Row], int | None]:
    """The rows of a page, fewer where they are long, and where the next page begins."""
    shown: list[Row] = []
    size = 0
    for row in found:
        if len(shown) == limit or size > PAGE_BYTES:
            return shown, shown[-1].position
        shown.append(row)
        size += _size(row)
    return shown, None


def _size(row: Produced | FailedItem) -> int:
    """The size of a row in bytes, about."""
    if isinstance(row, Produced) and row.vector is not None:
        return row.vector.nbytes
    return len(repr(row))


def _result(row: Produced) -> dict[str, Any]:
    came = {"answer": row.answer} if row.vector is None else {"vector": row.vector.tolist()}
    return {
        "position": row.position,
        "custom_id": row.custom_id,
        "metadata": row.metadata,
        **came,
    }
