"""What the server refused, read from its answer (RFC 9457)."""

import time
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
import pydantic_core

from promptstack_client.errors import ApiError, class_of


def problem_of(response: httpx2.Response) -> ApiError:
    """The error that an answer tells of, also where a proxy answered and not the server."""
    status = response.status_code
    problem = _problem(response)
    code = _text(problem, "code") or f"HTTP_{status}"
    detail = _text(problem, "detail") or response.reason_phrase or f"HTTP {status}"
    faults = problem.get("errors")
    return class_of(status, code)(
        status,
        code,
        detail,
        field=_text(problem, "field"),
        faults=faults if isinstance(faults, list) else None,
        retry_after=_retry_after(response),
    )


def _problem(response: httpx2.Response) -> dict[str, Any]:
    try:
        problem = pydantic_core.from_json(response.content)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _text(problem: dict[str, Any], name: str) -> str | None:
    value = problem.get(name)
    return value if isinstance(value, str) else None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds: the header holds them, or a time."""
    value = response.headers.get("Retry-After", "")
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
        return None
