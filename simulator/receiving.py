"""Reads what a caller sent: JSON, or the form of an upload."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from promptstack.simulator.wire import Refusal


@dataclass(frozen=True)
class Upload:
    """A file of a form."""

    filename: str
    content: bytes


async def body_of(request: web.Request) -> Mapping[str, Any]:
    """Return the body of a request; one without is empty."""
    if request.method in {"GET", "DELETE"}:
        return {}
    if request.content_type == "multipart/form-data":
        return await _form(request)
    raw = await request.read()
    if not raw and request.path.endswith("/cancel"):
        return {}
    try:
        body = orjson.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise Refusal(400, "We could not parse the JSON body of your request.")
    return body


async def _form(request: web.Request) -> Mapping[str, Any]:
    try:
        fields = await request.post()
    except ValueError as error:
        raise Refusal(400, f"The form can't be read: {error}.") from error
    return {
        name: Upload(value.filename or "upload", value.file.read())
        if isinstance(value, web.FileField)
        else value
        for name, value in fields.items()
    }
