"""Files: what clients upload, and what batches write."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from hashlib import sha256
from typing import Annotated, Any, Literal
from urllib.parse import quote
from uuid import UUID

from anyio import to_thread
from fastapi import HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.idempotency import Keyed
from promptstack.api.http.openai.ids import read_wire_id, unix, wire_id
from promptstack.api.http.openai.routes import openai_router
from promptstack.api.http.route import Handler, ProtectedRoute
from promptstack.api.http.sent_files import AskedPart
from promptstack.api.http.transfers import Downloads
from promptstack.api.http.uploads import FORM, GivenUpload, admit, from_form, with_body
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.pages import PageQuery
from promptstack.services.errors import InvalidInput
from promptstack.services.files.service import FileView
from promptstack.services.validation.bounds import Line
from promptstack.services.validation.json_text import dump_json

FILE_PREFIX = "file-"
ANY_BYTES = "application/octet-stream"
MOST_FILES = 10_000
"""On a page, as at OpenAI."""


class FileRoute(ProtectedRoute):
    """A route that takes a form with a file; its other fields are the route's JSON body."""

    async def read_and_handle(self, request: Request, handle: Handler) -> Response:
        """Receive the file, and handle the fields."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != FORM:
            raise HTTPException(415, f"A file is sent as {FORM}, in the field `file`.")
        with ExitStack() as held:
            await admit(request, held)
            request.state.upload, fields = await from_form(request, held)
            return await handle(with_body(request, dump_json(_nested(fields))))


class ExpiresAfter(BaseModel):
    """When a file is deleted."""

    anchor: Literal["created_at"]
    seconds: int


class FileFields(BaseModel):
    """The fields of a form beside its file."""

    purpose: str
    expires_after: ExpiresAfter | None = None


class FileQuery(BaseModel):
    """Which files to list."""

    limit: int = Field(MOST_FILES, ge=1, le=MOST_FILES)
    after: str | None = None
    order: Literal["asc", "desc"] = "desc"
    purpose: Line | None = None


router = openai_router()
uploads = openai_router(FileRoute)
"""The route that takes a file."""


@uploads.post("/files")
def create_file(
    fields: FileFields, upload: GivenUpload, stack: Stack, caller: CurrentCaller, keyed: Keyed
) -> dict[str, Any]:
    """Store a file. It can be used at once."""
    if upload is None:
        raise InvalidInput("The form has no file.", pointer="/file")
    if keyed is not None:
        keyed = _whole_key(keyed, upload.digest(), upload.name)
    created = stack.files.create(
        upload.file,
        filename=upload.name,
        purpose=fields.purpose,
        expires_after=None if fields.expires_after is None else fields.expires_after.seconds,
        user_id=caller.user_id,
        api_key_id=caller.key_id,
        keyed=keyed,
    )
    return file_object(created)


@router.get("/files")
def list_files(
    stack: Stack, caller: CurrentCaller, query: Annotated[FileQuery, Query()]
) -> dict[str, Any]:
    """Show your files."""
    after = None if query.after is None else read_file_id(query.after)
    page = stack.files.get_page(
        caller.user_id,
        PageQuery(query.limit, after),
        purpose=query.purpose,
        newest_first=query.order == "desc",
    )
    data = [file_object(one) for one in page.rows]
    return {
        "object": "list",
        "data": data,
        # Strings by OpenAI's description, so they are never null.
        "first_id": data[0]["id"] if data else "",
        "last_id": data[-1]["id"] if data else "",
        "has_more": page.after is not None,
    }


@router.get("/files/{file_id}")
def get_file(file_id: str, stack: Stack, caller: CurrentCaller) -> dict[str, Any]:
    """Show a file."""
    return file_object(stack.files.get(read_file_id(file_id), caller.user_id))


@router.delete("/files/{file_id}")
def delete_file(file_id: str, stack: Stack, caller: CurrentCaller) -> dict[str, Any]:
    """Delete a file; what a batch has read of it is kept."""
    stack.files.delete(read_file_id(file_id), caller.user_id)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/files/{file_id}/content", response_class=Response)
async def get_content(
    file_id: str,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    *,
    asked: AskedPart,
    offset: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
) -> Response:
    """Send the content of a file; of a batch's output, what there is behind `offset` lines."""
    downloads: Downloads = request.app.state.downloads
    found = read_file_id(file_id)
    with ExitStack() as held:
        held.enter_context(downloads.slots.taken_by(caller.user_id))
        opening = partial(stack.files.opened, found, caller.user_id, after_lines=offset)
        opened = await to_thread.run_sync(opening, limiter=downloads.makers)
        headers = {"Content-Disposition": _attachment(opened.file.filename)}
        if opened.last_line is not None:
            headers["X-Last-Line"] = str(opened.last_line)
            headers["X-Incomplete"] = "true" if opened.content.tag is None else "false"
        return await asked.answer(request, opened.content, held, headers, ANY_BYTES)


@router.get("/files/{file_id}/cost-estimate")
async def estimate_cost(
    file_id: str, request: Request, stack: Stack, caller: CurrentCaller
) -> dict[str, Any]:
    """Say what a batch of the file would cost, and what is wrong with it; nothing is kept."""
    downloads: Downloads = request.app.state.downloads
    asking = partial(stack.file_costs.of, read_file_id(file_id), **caller.as_owner)
    with downloads.slots.taken_by(caller.user_id):
        cost = await to_thread.run_sync(asking, limiter=downloads.makers)
    weighed, errors = cost.weighed, [vars(one) for one in cost.errors]
    sums = {
        "input_tokens": weighed.input_tokens,
        "max_output_tokens": weighed.output_tokens,
        "cost_usd": None if weighed.cost_usd is None else float(weighed.cost_usd),
    }
    by_model = {"model": weighed.model, "provider": weighed.provider, **sums}
    return {
        "object": "file.cost_estimate",
        "file_id": file_id,
        "endpoint": cost.endpoint,
        "lines": weighed.inputs,
        "invalid_lines": weighed.bad,
        "paid_requests": weighed.contents,
        **sums,
        "models": [by_model],
        "errors": {"object": "list", "data": errors} if errors else None,
    }


def file_object(file: FileView) -> dict[str, Any]:
    """A file as OpenAI's clients read it. One that is there was read whole: `processed`."""
    return {
        "id": wire_id(FILE_PREFIX, file.id),
        "object": "file",
        "bytes": file.bytes,
        "created_at": unix(file.created_at),
        "expires_at": unix(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def read_file_id(given: str) -> UUID:
    """The id of a file that a client has sent. Raises `NotFound`."""
    return read_wire_id(FILE_PREFIX, given, "file")


def _nested(fields: list[tuple[str, str]]) -> dict[str, Any]:
    """Fields of a form as JSON: `expires_after[seconds]` is one of `expires_after`."""
    body: dict[str, Any] = {}
    for name, value in fields:
        outer, bracket, inner = name.partition("[")
        if not bracket:
            body[name] = value
        elif isinstance(within := body.setdefault(outer, {}), dict):
            within[inner.removesuffix("]")] = value
    return body


def _whole_key(keyed: KeyedRequest, *said: str) -> KeyedRequest:
    """The request with a hash of all that was said, the file included."""
    together = "\n".join((keyed.request_hash, *said))
    return replace(keyed, request_hash=sha256(together.encode()).hexdigest())


def _attachment(filename: str) -> str:
    """Content-Disposition with a name of any characters (RFC 6266)."""
    plain = "".join(one if one.isascii() and one not in '"\\/%' else "_" for one in filename)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
