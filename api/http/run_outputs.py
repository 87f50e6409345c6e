"""The results and failures of runs as files: while a run goes on, and by ranges when it is done."""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import CurrentCaller, Owner, Stack
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.transfers import Downloads, SentInBlocks
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs.downloads import Download, Wanted

router = APIRouter(prefix="/runs", tags=["runs"], route_class=ProtectedRoute)

MEDIA_TYPES = {
    ExportFormat.JSONL: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.NPY: "application/x-npy",
}
ONE_RANGE = re.compile(r"bytes=\s*(\d{0,18})-(\d{0,18})\s*")
_FILE = {kind.partition(";")[0]: {"schema": {"type": "string", "format": "binary"}}
         for kind in MEDIA_TYPES.values()}  # fmt: skip
_HEADERS: dict[str, Any] = {
    "X-Incomplete": {
        "description": "`true` while the run goes on: more may come.",
        "schema": {"type": "string"},
    },
    "X-Next-After": {
        "description": "While the run goes on: send it as `after` next time, and nothing is missed.",
        "schema": {"type": "integer"},
    },
    "ETag": {
        "description": "When the run is done: names these bytes.",
        "schema": {"type": "string"},
    },
}
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": _FILE, "headers": _HEADERS},
    206: {"description": "The part that `Range` asks for.", "content": _FILE, "headers": _HEADERS},
    304: {"description": "It is what `If-None-Match` names."},
}


class FileQuery(BaseModel):
    """Which failures a file has."""

    model_config = ConfigDict(extra="forbid")

    after: int = Field(0, ge=0, le=2**31 - 1, description="Only items behind this position.")
    settled: bool = Field(
        False,
        description="While the run goes on: only up to the first item that is still open, so that "
        "no file has an item twice where the next one goes on at `X-Next-After`.",
    )


class ResultFileQuery(FileQuery):
    """Which results a file has, and what of them."""

    with_input: bool = Field(False, description="Also what was asked.")
    with_vector: bool = Field(True, description="Without vectors it says whose they are.")


Ranged = Annotated[str | None, Header(alias="Range", description="Such as `bytes=1000-`.")]
IfRange = Annotated[str | None, Header(description="An ETag: the whole file if it is another.")]
IfNoneMatch = Annotated[str | None, Header(description="An ETag: 304 if it is the same.")]


@dataclass(frozen=True)
class Conditions:
    """What the headers of a request ask for."""

    range: str | None
    if_range: str | None
    if_none_match: str | None


@router.get("/{run_id}/results/{format}", response_class=Response, responses=ANSWERS)
async def download_results(
    run_id: UUID,
    format: ExportFormat,  # noqa: A002 - as the path calls it
    stack: Stack,
    caller: CurrentCaller,
    owner: Owner,
    request: Request,
    query: Annotated[ResultFileQuery, Query()],
    range_: Ranged = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download what a run has produced so far; by `Range` when it is done."""
    wanted = Wanted(format, **dict(query))
    conditions = Conditions(range_, if_range, if_none_match)
    return await _send(request, caller.user_id, run_id, owner, wanted, conditions)


@router.get("/{run_id}/failures/{format}", response_class=Response, responses=ANSWERS)
async def download_failures(
    run_id: UUID,
    format: ExportFormat,  # noqa: A002 - as the path calls it
    stack: Stack,
    caller: CurrentCaller,
    owner: Owner,
    request: Request,
    query: Annotated[FileQuery, Query()],
    range_: Ranged = None,
    if_range: IfRange = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Download which items of a run have failed so far, and why; by `Range` when it is done."""
    wanted = Wanted(format, failures=True, **dict(query))
    conditions = Conditions(range_, if_range, if_none_match)
    return await _send(request, caller.user_id, run_id, owner, wanted, conditions)


async def _send(
    request: Request,
    user_id: UUID,
    run_id: UUID,
    owner: UUID | None,
    wanted: Wanted,
    conditions: Conditions,
) -> Response:
    downloads: Downloads = request.app.state.downloads
    service = request.app.state.stack.run_downloads
    with ExitStack() as held:
        held.enter_context(downloads.slots.taken_by(user_id))
        download: Download = await to_thread.run_sync(
            service.open, run_id, owner, wanted, limiter=downloads.makers
        )
        headers = {
            "Content-Disposition": f'attachment; filename="{download.name}"',
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "private, no-cache",
        }
        status, start, stop = 200, 0, None
        if download.tag is None:
            headers |= {"X-Incomplete": "true", "X-Next-After": str(download.next_after)}
        else:
            etag = f'"{download.tag}"'
            headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
            if _names(conditions.if_none_match, etag):
                return Response(status_code=304, headers=headers)
            asked = ONE_RANGE.fullmatch(conditions.range or "")
            if asked and asked.group() != "bytes=-" and conditions.if_range in {None, etag}:
                length = await to_thread.run_sync(download.measure, limiter=downloads.makers)
                status, (start, stop) = 206, _part(asked[1], asked[2], length)
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
            if download.length is not None:
                end = download.length if stop is None else stop
                headers["Content-Length"] = str(end - start)
        return SentInBlocks(
            download.blocks(start, stop),
            downloads.makers,
            held.pop_all(),
            status_code=status,
            headers=headers,
            media_type=MEDIA_TYPES[wanted.format],
        )


def _names(tags: str | None, etag: str) -> bool:
    """Whether a list of tags, or `*`, has this one."""
    given = [tag.strip().removeprefix("W/") for tag in (tags or "").split(",")]
    return etag in given or given == ["*"]


def _part(first: str, last: str, length: int) -> tuple[int, int]:
    """Return where a part begins and ends. Raises 416 for one that isn't there."""
    if first:
        start, stop = int(first), min(length, int(last) + 1) if last else length
    else:
        start, stop = max(0, length - int(last)), length
    if start >= stop:
        raise HTTPException(
            416,
            f"The file has {length:,} bytes, and none of those that were asked for.",
            headers={"Content-Range": f"bytes */{length}"},
        )
    return start, stop
