"""The results and failures of runs as files: while a run goes on, and by ranges when it is done."""

from contextlib import ExitStack
from typing import Annotated, Any
from uuid import UUID

from anyio import to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from promptstack.api.http.auth import CurrentCaller, Owner
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.sent_files import AskedPart
from promptstack.api.http.transfers import Downloads
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs.downloads import Wanted
from promptstack.tasks.composition import PromptStack

router = APIRouter(prefix="/runs", tags=["runs"], route_class=ProtectedRoute)

MEDIA_TYPES = {
    ExportFormat.JSONL: "application/x-ndjson",
    ExportFormat.CSV: "text/csv; charset=utf-8",
    ExportFormat.PARQUET: "application/vnd.apache.parquet",
    ExportFormat.NPY: "application/x-npy",
}
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
        self, request: Request, caller: CurrentCaller, owner: Owner, asked: AskedPart
    ) -> None:
        stack: PromptStack = request.app.state.stack
        self._service = stack.run_downloads
        self._request = request
        self._downloads: Downloads = request.app.state.downloads
        self._user_id = caller.user_id
        self._owner = owner
        self._asked = asked

    async def send(self, run_id: UUID, wanted: Wanted) -> Response:
        """Send what a run has produced. Raises `TooManyTransfers`, and as `RunDownloads.open`."""
        with ExitStack() as held:
            held.enter_context(self._downloads.slots.taken_by(self._user_id))
            download = await to_thread.run_sync(
                self._service.open,
                run_id,
                self._owner,
                wanted,
                limiter=self._downloads.makers,
            )
            headers = {"Content-Disposition": f'attachment; filename="{download.name}"'}
            if download.tag is None:
                headers |= {"X-Incomplete": "true", "X-Next-After": str(download.next_after)}
            media_type = MEDIA_TYPES[wanted.format]
            return await self._asked.answer(self._request, download, held, headers, media_type)


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
