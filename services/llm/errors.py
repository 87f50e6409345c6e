"""What can go wrong at a provider; each service translates its SDK's errors into these."""

from config.errors import PromptStackError
from services.llm.limit_report import LimitReport
from services.text import make_storable

HIDDEN = "[hidden]"
SHORTEST_KEY = 8


class ProviderError(PromptStackError):
    """The provider didn't give a usable answer."""

    code = "EXTERNAL_SERVICE_ERROR"

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        retry_after: float | None = None,
        status: int | None = None,
        request_id: str | None = None,
        limits: LimitReport | None = None,
    ) -> None:
        # A provider's words and headers may hold what can't be stored or logged.
        super().__init__(
            make_storable(message),
            detail=detail and make_storable(detail),
            retry_after=retry_after,
        )
        self.status = status
        self.limits = limits
        self.request_id = request_id and make_storable(request_id)

    def hide(self, key: str) -> None:
        """Take a key of ours out of what the provider said, also one that is cut off at the end."""
        if self.detail is None or len(key) < SHORTEST_KEY:
            return
        shown = self.detail.replace(key, HIDDEN)
        for length in range(len(key) - 1, SHORTEST_KEY - 1, -1):
            if shown.endswith(key[:length]):
                shown = shown[:-length] + HIDDEN
                break
        self.detail = shown


class RateLimited(ProviderError):
    """The provider asks us to slow down: not the job's fault, so it costs no retry."""

    code = "RATE_LIMITED"
    transient = True
    counts_as_failure = False
    backs_off = False


class QuotaExhausted(ProviderError):
    """The account has no money or quota left; no waiting cures that."""

    code = "QUOTA_EXHAUSTED"
    counts_as_failure = False


class ModelQuotaExhausted(QuotaExhausted):
    """The quota of one model is used up, such as a day's; other models have their own."""


class Overloaded(ProviderError):
    """The provider is up but can't serve us now (5xx)."""

    code = "PROVIDER_OVERLOADED"
    transient = True


class ProviderTimeout(ProviderError):
    """No answer within the call's timeout. The call may still have been billed."""

    code = "PROVIDER_TIMEOUT"
    transient = True


class ConnectionFailed(ProviderError):
    """The provider couldn't be reached, or the connection broke."""

    code = "PROVIDER_UNREACHABLE"
    transient = True


class NeverSent(ConnectionFailed):
    """There was no connection to the provider, so that nothing was sent and nothing billed."""


class AuthenticationFailed(ProviderError):
    """The provider refused our credentials."""

    code = "PROVIDER_AUTHENTICATION"


class InvalidProviderRequest(ProviderError):
    """The provider says the request itself is wrong."""

    code = "INVALID_PROVIDER_REQUEST"


class ModelNotFound(InvalidProviderRequest):
    """The provider knows no such model, or its address is wrong."""

    code = "MODEL_NOT_FOUND"


class ContextTooLong(InvalidProviderRequest):
    """The input is longer than the model takes."""

    code = "CONTEXT_TOO_LONG"


class ContentRefused(ProviderError):
    """The provider's content filter refused the input or the answer."""

    code = "CONTENT_REFUSED"


class BadResponse(ProviderError):
    """The provider answered something that can't be an answer (wrong count, NaN, broken JSON)."""

    code = "BAD_PROVIDER_RESPONSE"
    transient = True
