"""Problems as Anthropic's clients read errors: `error` with `type` and `message`."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from promptstack.api.http.anthropic.routes import ANTHROPIC_PREFIX
from promptstack.api.http.wire_errors import WireErrors, dotted, message_of
from promptstack.services.access.request_limits import RequestsLeft
from promptstack.services.anthropic.errors import error_body

STATUSES: Mapping[int, int] = {415: 400, 422: 400}
"""Of problems that Anthropic answers by another status."""
STATUSES_OF_CODES: Mapping[str, int] = {"UNKNOWN_MODEL": 404}


def anthropic_status(problem: Mapping[str, Any]) -> int:
    """Return the status of an error for a problem."""
    status: int = problem["status"]
    return STATUSES_OF_CODES.get(problem["code"], STATUSES.get(status, status))


def anthropic_error(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of an error for a problem, without the id of the request."""
    message, field = message_of(problem)
    if field and not problem.get("errors"):
        message = f"{dotted(field)}: {message}"
    return error_body(anthropic_status(problem), message)


class AnthropicErrors(WireErrors):
    """Gives the answers below `ANTHROPIC_PREFIX` the form and the headers of Anthropic's."""

    prefix = ANTHROPIC_PREFIX
    request_id_header = "request-id"

    def status_of(self, problem: Mapping[str, Any]) -> int:
        return anthropic_status(problem)

    def body_of(self, problem: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        return {**anthropic_error(problem), "request_id": request_id}

    def rate_headers(self, left: RequestsLeft) -> dict[str, str]:
        reset = datetime.now(UTC) + timedelta(seconds=left.reset_seconds)
        return {
            "anthropic-ratelimit-requests-limit": str(left.limit),
            "anthropic-ratelimit-requests-remaining": str(left.remaining),
            "anthropic-ratelimit-requests-reset": reset.isoformat(timespec="seconds"),
        }
