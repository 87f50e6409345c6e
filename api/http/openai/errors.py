"""Problems as OpenAI's clients read errors: `error` with `message`, `type`, `param` and `code`."""

from collections.abc import Mapping
from typing import Any

from promptstack.api.http.openai.routes import OPENAI_PREFIX
from promptstack.api.http.wire_errors import WireErrors, dotted, message_of
from promptstack.services.access.request_limits import RequestsLeft
from promptstack.services.openai.errors import SPENT, error_body

STATUSES: Mapping[int, int] = {402: 429, 415: 400, 422: 400}
"""Of problems that OpenAI answers by another status; its clients make one error class of each."""
STATUSES_OF_CODES: Mapping[str, int] = {"UNKNOWN_MODEL": 404}
"""Of problems whose status at OpenAI's depends on what is wrong."""
CODES_OF_STATUSES: Mapping[int, str] = {401: "invalid_api_key", SPENT: "insufficient_quota"}
"""OpenAI has one name for all that ours say of a key or a budget."""
CODES: Mapping[str, str] = {
    "UNKNOWN_MODEL": "model_not_found",
    "INPUT_TOO_LONG": "context_length_exceeded",
    "TOO_MANY_REQUESTS": "rate_limit_exceeded",
    "INVALID_INPUT": "invalid_value",
    "UNPROCESSABLE_CONTENT": "invalid_value",
}
"""OpenAI's names of ours. Else ours in lower case."""


def openai_error(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of an error for a problem."""
    status, code = problem["status"], problem["code"]
    message, field = message_of(problem)
    return error_body(
        status,
        message,
        code=CODES_OF_STATUSES.get(status) or CODES.get(code, code.lower()),
        param=dotted(field) or None,
    )


class OpenAIErrors(WireErrors):
    """Gives the answers below `OPENAI_PREFIX` the form and the headers of OpenAI's."""

    prefix = OPENAI_PREFIX
    request_id_header = "x-request-id"

    def status_of(self, problem: Mapping[str, Any]) -> int:
        status: int = problem["status"]
        return STATUSES_OF_CODES.get(problem["code"], STATUSES.get(status, status))

    def body_of(self, problem: Mapping[str, Any], request_id: str) -> dict[str, Any]:
        return openai_error(problem)

    def rate_headers(self, left: RequestsLeft) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(left.limit),
            "x-ratelimit-remaining-requests": str(left.remaining),
            "x-ratelimit-reset-requests": f"{left.reset_seconds:.3f}s",
        }
