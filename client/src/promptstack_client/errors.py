"""The client's errors: one root, and a class for each thing that a caller does something about."""

from typing import Any

SHOWN_FAULTS = 3


class PromptStackError(Exception):
    """The root of every error that this client raises on purpose."""


class NotConfigured(PromptStackError):
    """The client does not know where the server is, or has no key."""


class ConnectionFailed(PromptStackError):
    """No answer came. It was tried several times, where that can't do anything twice."""

    def __init__(self, detail: str, *, was_sent: bool) -> None:
        super().__init__(detail)
        self.was_sent = was_sent
        """Whether the request may have reached the server."""


class TimedOut(ConnectionFailed):
    """No answer came in time."""


class UnexpectedAnswer(PromptStackError):
    """The answer is none of this API: another server may be at this address, or a proxy."""


class WaitTimedOut(PromptStackError, TimeoutError):
    """What was waited for has not ended in time. It goes on."""


class NotEnded(PromptStackError):
    """There is no result yet: wait for the end first."""


class Unsuccessful(PromptStackError):
    """It ended without a result: it failed, expired or was cancelled."""

    def __init__(self, what: str, state: str, code: str | None, detail: str | None) -> None:
        reason = f": {detail}" if detail else ""
        super().__init__(f"{what} is {state}{reason}")
        self.state = state
        self.code = code
        self.detail = detail


class ApiError(PromptStackError):
    """The server refused the request, and says why."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        faults: list[dict[str, Any]] | None = None,
        retry_after: float | None = None,
    ) -> None:
        said = [f"{fault.get('location')}: {fault.get('message')}" for fault in faults or []]
        where = f" ({'; '.join(said[:SHOWN_FAULTS]) or field})" if said or field else ""
        super().__init__(f"{detail}{where} [{status} {code}]")
        self.status = status
        self.code = code
        """A stable name for programs, such as `NOT_FOUND`."""
        self.detail = detail
        self.field = field
        """Which field of the request is at fault, where it is one."""
        self.faults = faults or []
        """All that is wrong with the request: each has a `message` and says where."""
        self.retry_after = retry_after
        """Seconds after which it may go well, where it is a matter of time."""

    @property
    def is_foreign(self) -> bool:
        """Whether something on the way answered, and not the server."""
        return self.code == f"HTTP_{self.status}"


class InvalidRequest(ApiError):
    """The request can't be accepted as it is: 400, 413, 415 or 422."""


class NotAuthenticated(ApiError):
    """The key is missing, wrong, revoked or has expired: 401."""


class BudgetReached(ApiError):
    """A spend cap is reached: 402."""


class NotPermitted(ApiError):
    """The key may not do that: 403."""


class NotFound(ApiError):
    """There is no such thing, or it belongs to another user: 404."""


class Conflict(ApiError):
    """It can't be done in this state, or not even after waiting a little: 409."""


class IdempotencyConflict(Conflict):
    """The idempotency key was used for another request before."""


class RateLimited(ApiError):
    """Too many requests, also after waiting and trying again: 429."""


class ServerError(ApiError):
    """Something went wrong at the server: 500 and above."""


class Unavailable(ServerError):
    """The server can't do it for now, also after waiting and trying again: 503."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequest,
    401: NotAuthenticated,
    402: BudgetReached,
    403: NotPermitted,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    415: InvalidRequest,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
}
_BY_CODE: dict[str, type[ApiError]] = {"IDEMPOTENCY_CONFLICT": IdempotencyConflict}


def class_of(status: int, code: str) -> type[ApiError]:
    """The class of an error of this status and code."""
    known = _BY_CODE.get(code) or _BY_STATUS.get(status)
    return known or (ServerError if status >= 500 else ApiError)
