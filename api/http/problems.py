"""A problem: the form of every error, `application/problem+json` (RFC 9457)."""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Response
from pydantic import BaseModel, Field

MEDIA_TYPE = "application/problem+json"
TITLES = {
    413: "Content Too Large",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
"""The names of RFC 9110. Python's own depend on its version."""
DETAILS = {
    404: "There is nothing at this address.",
    405: "This address does not take this method; the header Allow says which it takes.",
    413: "The body is larger than this server reads (MAX_BODY_BYTES).",
    500: "Something went wrong here; the server's log says what.",
}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    location: str = Field(description="Where, for example `body.messages.0.role`.")
    pointer: str | None = Field(None, description="The same in a body, as a JSON pointer.")
    message: str


class Problem(BaseModel):
    """An error as callers see it. It quotes no body and shows nothing of the inside."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="A sentence for a person.")
    code: str = Field(description="A stable name for programs.")
    field: str | None = Field(
        None,
        description="The one field of the body that is at fault, as a JSON pointer, for example "
        "`/messages/0/role`; or the name of a parameter.",
    )
    errors: Sequence[Fault] | None = Field(None, description="All that is wrong with a request.")


_PROBLEM: dict[str, Any] = {
    "model": Problem,
    "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {**_PROBLEM, "description": "What is wrong with the request (RFC 9457)."},
    "5XX": {**_PROBLEM, "description": "What is wrong here, for now or for longer (RFC 9457)."},
}


def respond(
    status: int,
    detail: str | None = None,
    *,
    code: str | None = None,
    field: str | None = None,
    errors: Sequence[Fault] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Make the response of a problem. What is not given follows from the status."""
    title = TITLES.get(status) or HTTPStatus(status).phrase
    problem = Problem(
        title=title,
        status=status,
        detail=detail or DETAILS.get(status, f"{title}."),
        code=code or title.upper().replace(" ", "_"),
        field=field,
        errors=errors,
    )
    # In ASCII, so that a message with any characters can be sent.
    content = json.dumps(problem.model_dump(exclude_none=True))
    return Response(content, status, headers, MEDIA_TYPE)
