"""The results and failures of runs as files: while a run goes on, and by ranges when it is done."""

import re
from contextlib import ExitStack
from typing import Annotated, Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import CurrentCaller, Owner
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.transfers import Downloads, SentInBlocks, make_all
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs.downloads import Download, Wanted
from promptstack.tasks.composition import PromptStack

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
        "description": "While the run goes on: what to send as `after` next time to miss nothing.",
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


class Sender:
    """Sends downloads as the headers of a request ask for them."""

    def __init__(
        self,
        request: Request,
        caller: CurrentCaller,
        owner: Owner,
        *,
        range_: Annotated[
            str | None, Header(alias="Range", description="Such as `bytes=1000-`.")
        ] = None,
        if_range: Annotated[
            str | None, Header(description="An ETag: the whole file if it is another.")
        ] = None,
        if_none_match: Annotated[
            str | None, Header(description="An ETag: 304 if it is the same.")
        ] = None,
    ) -> None:
        stack: PromptStack = request.app.state.stack
        self._service = stack.run_downloads
        self._request = request
        self._downloads: Downloads = request.app.state.downloads
        self._user_id = caller.user_id
        self._owner = owner
        self._range = range_
        self._if_range = if_range
        self._if_none_match = if_none_match

    async def send(self, run_id: UUID, wanted: Wanted) -> Response:
        """Send what a run has produced. Raises `TooManyTransfers`, and as `RunDownloads.open`."""
        makers = self._downloads.makers
        with ExitStack() as held:
            held.enter_context(self._downloads.slots.taken_by(self._user_id))
            download = await to_thread.run_sync(
                self._service.open, run_id, self._owner, wanted, limiter=makers
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
                if _names(self._if_none_match, etag):
                    return Response(status_code=304, headers=headers)
                asked = _range(self._range)
                if asked is not None and self._if_range in {None, etag}:
                    length = await self._measured(download)
                    status, (start, stop) = 206, _part(*asked, length)
                    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{length}"
            end = download.length if stop is None else stop
            if end is not None:
                headers["Content-Length"] = str(end - start)
            return SentInBlocks(
                download.blocks(start, stop),
                makers,
                held.pop_all(),
                status_code=status,
                headers=headers,
                media_type=MEDIA_TYPES[wanted.format],
            )

    async def _measured(self, download: Download) -> int:
        """Find out how many bytes it has. Others have their turn after each block that it takes."""
        await make_all(download.measuring(), self._downloads.makers, self._request)
        return download.length or 0


Sending = Annotated[Sender, Depends()]


@router.get("/{run_id}/results/{format}", response_class=Response, responses=ANSWERS)
async def download_results(
    run_id: UUID,
    format: ExportFormat,  # noqa: A002 - as the path calls it
    query: Annotated[ResultFileQuery, Query()],
    sender: Sending,
) -> Response:
    """Download what a run has produced so far; by `Range` when it is done."""
    return await sender.send(run_id, Wanted(format, **dict(query)))


@router.get("/{run_id}/failures/{format}", response_class=Response, responses=ANSWERS)
async def download_failures(
    run_id: UUID,
    format: ExportFormat,  # noqa: A002 - as the path calls it
    query: Annotated[FileQuery, Query()],
    sender: Sending,
) -> Response:
    """Download which items of a run have failed so far, and why; by `Range` when it is done."""
    return await sender.send(run_id, Wanted(format, failures=True, **dict(query)))


def _names(tags: str | None, etag: str) -> bool:
    """Whether a list of tags, or `*`, has this one."""
    given = [tag.strip().removeprefix("W/") for tag in (tags or "").split(",")]
    return etag in given or given == ["*"]


def _range(header: str | None) -> tuple[int | None, int | None] | None:
    """Read which one range is asked for. Any other header is as none (RFC 9110, 14.2)."""
    found = ONE_RANGE.fullmatch(header or "")
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = (int(part) if part else None for part in found.group(1, 2))
    is_backwards = first is not None and last is not None and last < first
    return None if is_backwards else (first, last)


def _part(first: int | None, last: int | None, length: int) -> tuple[int, int]:
    """Return where a part begins and ends. Raises 416 for one that isn't there."""
    if first is None:
        start, stop = max(0, length - (last or 0)), length
    else:
        start, stop = first, length if last is None else min(length, last + 1)
    if start >= stop:
        raise HTTPException(
            416,
            f"The file has {length:,} bytes, and none of those that were asked for.",
            headers={"Content-Range": f"bytes */{length}"},
        )
    return start, stop
