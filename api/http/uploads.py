"""Receives files as the bodies of requests: piece by piece into a temporary file."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO

from anyio import to_thread
from fastapi import Depends, Request, Response
from pydantic import BaseModel
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import Message, Receive, Scope, Send

from promptstack.api.http.route import ExactRequest, Handler, ProtectedRoute
from promptstack.api.http.transfers import READ_SECONDS, TooLarge, Uploads
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.reading import Format
from promptstack.services.validation.json_text import dump_json, load_json

FORMATS = {
    "application/x-ndjson": Format.JSONL,
    "application/jsonl": Format.JSONL,
    "text/csv": Format.CSV,
    "application/vnd.apache.parquet": Format.PARQUET,
    "text/plain": Format.LINES,
}
"""By the media type of a body."""
FORM = "multipart/form-data"
PACKED = {"": "", "identity": "", "gzip": "body.gz", "x-gzip": "body.gz", "zstd": "body.zst"}
"""By Content-Encoding: the name of a file that is packed so, which tells how."""
IN_QUERY = frozenset({"dry_run", "wait"})
"""What stands in the query with every kind of body; with a file, so do all other options."""
WRITTEN_AT_ONCE = 1_048_576
MAX_FIELDS = 100
MAX_FIELD_BYTES = 1_048_576
FRAME_BYTES = 1_048_576
"""Of a form besides its file: its fields are checked one by one."""


@dataclass(frozen=True)
class Upload:
    """A file that has arrived."""

    file: BinaryIO
    name: str
    """What its sender calls it; it may tell the format."""
    format: Format | None

    def digest(self) -> str:
        """Identify its content."""
        self.file.seek(0)
        found = hashlib.sha256()
        while piece := self.file.read(WRITTEN_AT_ONCE):
            found.update(piece)
        self.file.seek(0)
        return found.hexdigest()


class NamedFile:
    """A file with the name that its sender gave it, for who reads formats off names."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self.name = name
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


async def given_upload(request: Request) -> Upload | None:
    """Return the file that a request consists of; None where its body is JSON."""
    upload: Upload | None = getattr(request.state, "upload", None)
    return upload


GivenUpload = Annotated[Upload | None, Depends(given_upload)]


class UploadRoute(ProtectedRoute):
    """A route that takes JSON, or a file with the fields of that JSON as options.

    The file is the body, with the options in the query, or a part of a form that is called `file`,
    with the options as its fields. For the route's function the options are the JSON body.
    """

    async def read_and_handle(self, request: Request, handle: Handler) -> Response:
        """Receive a file and handle the options; handle JSON as any other route."""
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        model = None if self.body_field is None else self.body_field.field_info.annotation
        if not (
            isinstance(model, type) and issubclass(model, BaseModel)
        ):  # a body that may be left out is no new run's
            return await super().read_and_handle(request, handle)
        if media_type != FORM and media_type not in FORMATS:
            if unknown := set(request.query_params) - IN_QUERY:
                raise InvalidInput(
                    f"With a JSON body, {' and '.join(sorted(unknown))} belong into it, and not "
                    "into the query."
                )
            return await super().read_and_handle(request, handle)
        with ExitStack() as held:
            await admit(request, held)
            options: list[tuple[str, str]]
            if media_type == FORM:
                upload, options = await from_form(request, held)
            else:
                upload, options = await _from_body(request, held, FORMATS[media_type]), []
            request.state.upload = upload
            in_query = [
                pair for pair in request.query_params.multi_items() if pair[0] not in IN_QUERY
            ]
            body = dump_json(_as_json([*in_query, *options], model))
            return await handle(with_body(request, body))


async def admit(request: Request, held: ExitStack) -> None:
    """Let a larger body through than other routes take, and for longer.

    Raises `TooLarge` and `TooManyTransfers`.
    """
    uploads: Uploads = request.app.state.uploads
    held.enter_context(uploads.slots.taken_by(request.state.caller.user_id))
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > uploads.max_bytes + FRAME_BYTES:
        raise _too_large(uploads)
    request.scope.setdefault("state", {})[READ_SECONDS] = uploads.seconds
    # Within another one, it sets that one's limit.
    raised = RequestBodyLimitMiddleware(_nothing, uploads.max_bytes + FRAME_BYTES)
    await raised(request.scope, request.receive, _to_nobody)


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def _to_nobody(message: Message) -> None:
    pass


async def _from_body(request: Request, held: ExitStack, format_: Format) -> Upload:
    """Receive the whole body as the file."""
    coding = request.headers.get("content-encoding", "").strip().lower()
    if coding not in PACKED:
        raise HTTPException(
            415, f"A body in {coding:.40} is not unpacked here; send gzip, zstd or none."
        )
    uploads: Uploads = request.app.state.uploads
    file = tempfile.TemporaryFile()  # noqa: SIM115 - `held` closes it
    held.enter_context(file)
    waiting, size = bytearray(), 0
    async for piece in request.stream():
        waiting += piece
        size += len(piece)
        if size > uploads.max_bytes:
            raise _too_large(uploads)
        if len(waiting) >= WRITTEN_AT_ONCE:
            await to_thread.run_sync(file.write, bytes(waiting))
            waiting.clear()
    await to_thread.run_sync(file.write, bytes(waiting))
    file.seek(0)
    return Upload(file, PACKED[coding], format_)


class _FormParser(MultiPartParser):
    """Takes `file` for a file also where it has no filename, as bytes have none."""

    def on_headers_finished(self) -> None:
        part = self._current_part
        _, options = parse_options_header(part.content_disposition)
        if options.get(b"name") == b"file" and b"filename" not in options:
            part.content_disposition = (part.content_disposition or b"") + b'; filename=""'
        super().on_headers_finished()


async def from_form(request: Request, held: ExitStack) -> tuple[Upload, list[tuple[str, str]]]:
    """Receive the file of a form, and its other fields."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Pack the file of a form, and not the form.")
    uploads: Uploads = request.app.state.uploads
    parser = _FormParser(
        request.headers,
        request.stream(),
        max_files=1,
        max_fields=MAX_FIELDS,
        max_part_size=MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise InvalidInput(
            "The form can't be read. It has one file, in the field `file`, and up to "
            f"{MAX_FIELDS} fields of {MAX_FIELD_BYTES:,} bytes."
        ) from error
    for value in form.values():
        if isinstance(value, UploadFile):
            held.callback(value.file.close)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise InvalidInput(
            "The form has no whole file. Send one in the field `file`, and the form up to its last "
            "boundary."
        )
    if (file.size or 0) > uploads.max_bytes:
        raise _too_large(uploads)
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    media_type = (file.content_type or "").partition(";")[0].strip().lower()
    name = file.filename or ""
    # A program may call everything text/plain, and then the name says more.
    format_ = None if "." in name else FORMATS.get(media_type)
    return Upload(file.file, name, format_), fields


def _as_json(given: Iterable[tuple[str, str]], model: type[BaseModel]) -> dict[str, Any]:
    """Return options as the JSON body that says the same."""
    texts: dict[str, list[str]] = {}
    for name, value in given:
        texts.setdefault(name, []).append(value)
    schema = model.model_json_schema()
    return {name: _value(name, values, schema) for name, values in texts.items()}


def _value(name: str, values: list[str], schema: Mapping[str, Any]) -> Any:
    kinds = set(_kinds(schema["properties"].get(name, {}), schema.get("$defs", {})))
    if len(values) > 1:
        if "array" not in kinds:
            raise InvalidInput(f"{name:.100} is said more than once.")
        return values
    [value] = values
    if kinds & {"integer", "number"} and "string" not in kinds:
        return _number(value)
    if kinds & {"array", "object"} and value.lstrip()[:1] in {"[", "{"}:
        try:
            return load_json(value.encode(), name)
        except json.JSONDecodeError as error:
            raise InvalidInput(f"{name:.100} is not JSON; write lists and objects so.") from error
    return values if "array" in kinds and "string" not in kinds else value


def _number(text: str) -> Any:
    """Return the number that a text is, or else the text, which is refused then."""
    with suppress(ValueError):
        return int(text) if text.isascii() and text.isdecimal() else float(text)
    return text


def _kinds(schema: Mapping[str, Any], others: Mapping[str, Any]) -> Iterable[str]:
    """Yield the types that a field may have."""
    if "$ref" in schema:
        yield from _kinds(others[schema["$ref"].rpartition("/")[2]], others)
    if "type" in schema:
        yield schema["type"]
    for one in schema.get("anyOf", ()):
        yield from _kinds(one, others)


def with_body(request: Request, body: bytes) -> Request:
    """Return the request with JSON in place of the file."""
    names = {b"content-type", b"content-length", b"content-encoding", b"transfer-encoding"}
    headers = [pair for pair in request.scope["headers"] if pair[0] not in names]
    headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    is_read = False

    async def receive() -> Message:
        nonlocal is_read
        if is_read:
            return await request.receive()  # when the client goes away
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return ExactRequest({**request.scope, "headers": headers}, receive)


def _too_large(uploads: Uploads) -> TooLarge:
    return TooLarge(
        f"The file has more than {uploads.max_bytes:,} bytes (MAX_UPLOAD_BYTES); send it in "
        "parts, or the source of a run packed.",
    )
