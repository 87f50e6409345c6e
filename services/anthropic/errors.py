"""Errors as Anthropic's clients read them."""

from collections.abc import Mapping
from typing import Any

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""By status. Else `invalid_request_error`, and `api_error` from 500 on."""


def error_body(status: int, message: str) -> dict[str, Any]:
    """The body of an error; an answer has the id of its request beside it."""
    kind = TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": message}}
