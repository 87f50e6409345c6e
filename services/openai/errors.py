"""Errors as OpenAI's clients read them: their body, and what each failure of a job is on the wire.

A failure whose cause is the request keeps a status of 4xx, which clients don't send again.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

TYPES: Mapping[int, str] = {
    401: "authentication_error",
    402: "insufficient_quota",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
"""By status. Else `invalid_request_error`, and `server_error` from 500 on."""
SPENT = 402
"""Of quota and budgets that are spent: on the wire it is 429 with the type `insufficient_quota`."""


class Failure(NamedTuple):
    """What a failure is on the wire."""

    status: int
    code: str
    is_of_provider: bool = False
    """Whether the provider has said it; else this server has."""

    @property
    def wire_status(self) -> int:
        """The status that clients see."""
        return 429 if self.status == SPENT else self.status


def _by_provider(status: int, code: str) -> Failure:
    return Failure(status, code, is_of_provider=True)


_SPENT = Failure(SPENT, "insufficient_quota")
FAILURES: Mapping[str, Failure] = {
    "INVALID_PROVIDER_REQUEST": _by_provider(400, "invalid_request"),
    "CONTEXT_TOO_LONG": _by_provider(400, "context_length_exceeded"),
    "TOO_MANY_TEXTS": _by_provider(400, "context_length_exceeded"),
    "CONTENT_REFUSED": _by_provider(400, "content_filter"),
    "PROVIDER_DENIED": _by_provider(403, "provider_denied"),
    "MODEL_NOT_FOUND": _by_provider(404, "model_not_found"),
    "RATE_LIMITED": _by_provider(429, "rate_limit_exceeded"),
    "QUOTA_EXHAUSTED": _by_provider(SPENT, "insufficient_quota"),
    "PROVIDER_BROKE": _by_provider(502, "provider_broke"),
    "PROVIDER_OVERLOADED": _by_provider(503, "provider_overloaded"),
    # The key is this server's, and no fault of who asks.
    "PROVIDER_AUTHENTICATION": Failure(502, "provider_authentication"),
    "PROVIDER_NOT_CONFIGURED": Failure(502, "provider_not_configured"),
    "PROVIDER_UNREACHABLE": Failure(502, "provider_unreachable"),
    "PROVIDER_INTERCEPTED": Failure(502, "provider_intercepted"),
    "BAD_PROVIDER_RESPONSE": Failure(502, "bad_provider_response"),
    "ANSWER_CUT_OFF": Failure(502, "answer_cut_off"),
    "PROVIDER_TIMEOUT": Failure(504, "provider_timeout"),
    "CIRCUIT_OPEN": Failure(503, "circuit_open"),
    "RATE_LIMIT_WAIT": Failure(429, "rate_limit_exceeded"),
    "REQUEST_OVER_LIMIT": Failure(413, "request_over_limit"),
    "BUDGET_REACHED": _SPENT,
    "KEY_BUDGET_REACHED": _SPENT,
    "USER_BUDGET_REACHED": _SPENT,
    "DEPLOYMENT_BUDGET_REACHED": _SPENT,
    "COST_UNKNOWN": Failure(SPENT, "cost_unknown"),
    "UNKNOWN_MODEL": Failure(404, "model_not_found"),
    "UNKNOWN_PROVIDER": Failure(400, "unknown_provider"),
    "INVALID_INPUT": Failure(400, "invalid_value"),
    "NOT_PERMITTED": Failure(403, "not_permitted"),
    "EXPIRED": Failure(504, "timeout"),
}


def failure_of(error_code: str | None) -> Failure:
    """What the error with which a job or an item has ended is on the wire."""
    known = FAILURES.get(error_code or "")
    return known or Failure(500, (error_code or "server_error").lower())


def error_body(
    status: int, message: str, *, code: str | None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
