"""The errors of providers. Each service translates those of its SDK into these.

* ProviderError
  * RateLimited
  * QuotaExhausted
    * ModelQuotaExhausted
  * Overloaded
    * ServerBroke
  * ProviderTimeout
  * ConnectionFailed
    * CutOff
    * NeverSent
  * AuthenticationFailed
    * NotConfigured
  * Denied
    * Intercepted
  * InvalidProviderRequest
    * ModelNotFound
    * ContextTooLong
      * TooManyTexts
  * ContentRefused
    * InputRefused
  * BadResponse
    * AnsweredAsText
    * LargeAnswer
    * OddVector

The attributes of a class say what its errors mean, for single jobs, documents and runs alike:
whether they are retried (`transient`, `counts_as_failure`, `most_tries`, `backs_off`), bisected or
end the run (`reach`), are billed (`billed`), or make a job ask its next provider (`falls_back`),
and what the limiter learns (`outcome`). `PromptStackError` explains each.
"""

from typing import ClassVar, Self

from promptstack.config.errors import PromptStackError, Reach
from promptstack.services.llm.answers import LimitReport, Outcome, Usage
from promptstack.services.text import make_storable

HIDDEN = "[hidden]"
SHORTEST_KEY = 8


class ProviderError(PromptStackError):
    """The provider gave no usable answer."""

    code = "EXTERNAL_SERVICE_ERROR"

    outcome: ClassVar[Outcome] = Outcome.REFUSED
    """What the limiter learns from it about the provider."""

    def __init__(
        self,
        message: str,
        *,
        detail: str | None = None,
        retry_after: float | None = None,
        status: int | None = None,
        request_id: str | None = None,
        limits: LimitReport | None = None,
        usage: Usage | None = None,
        note: str = "",
    ) -> None:
        # A provider's text and headers may hold characters that can't be stored or logged.
        super().__init__(
            make_storable(message),
            detail=detail and make_storable(detail),
            retry_after=retry_after,
        )
        self.status = status
        self.limits = limits
        self.usage = usage
        """The tokens that the call used, where the provider said so in spite of the error."""
        self.note = note
        self.request_id = request_id and make_storable(request_id)

    def hide(self, key: str) -> None:
        """Remove our API key from what the provider said, also a key that is cut off at the end."""
        if self.detail is None or len(key) < SHORTEST_KEY:
            return
        shown = self.detail.replace(key, HIDDEN)
        for length in range(len(key) - 1, SHORTEST_KEY - 1, -1):
            if shown.endswith(key[:length]):
                shown = shown[:-length] + HIDDEN
                break
        self.detail = shown


class RateLimited(ProviderError):
    """The provider asks us to slow down. This uses up no retry."""

    code = "RATE_LIMITED"
    transient = True
    counts_as_failure = False
    backs_off = False
    reach = Reach.SERVER
    billed = False
    outcome = Outcome.THROTTLED


class QuotaExhausted(ProviderError):
    """The account has no money or quota left, so waiting does not help."""

    code = "QUOTA_EXHAUSTED"
    counts_as_failure = False
    reach = Reach.RUN
    billed = False
    falls_back = True
    outcome = Outcome.QUOTA


class ModelQuotaExhausted(QuotaExhausted):
    """The quota of one model is used up, such as its daily quota; other models have their own."""

    outcome = Outcome.MODEL_QUOTA


class Overloaded(ProviderError):
    """The provider is up but can serve nobody now (503, 529)."""

    code = "PROVIDER_OVERLOADED"
    transient = True
    reach = Reach.SERVER
    billed: ClassVar[bool | None] = False
    falls_back = True
    outcome = Outcome.FAILED


class ServerBroke(Overloaded):
    """The provider failed on the call (500, 502, 504), by itself or because of one input."""

    code = "PROVIDER_BROKE"
    reach = Reach.EITHER
    billed = None


class ProviderTimeout(ProviderError):
    """No answer within the call's timeout. The call may still have been billed."""

    code = "PROVIDER_TIMEOUT"
    transient = True
    falls_back = True
    outcome = Outcome.FAILED


class ConnectionFailed(ProviderError):
    """The provider couldn't be reached, or the connection broke."""

    code = "PROVIDER_UNREACHABLE"
    transient = True
    reach = Reach.EITHER
    falls_back = True
    outcome = Outcome.FAILED


class CutOff(ConnectionFailed):
    """A stream ended before the answer did. What came of it is billed."""

    code = "ANSWER_CUT_OFF"


class NeverSent(ConnectionFailed):
    """There was no connection to the provider, so nothing was sent or billed."""

    reach = Reach.SERVER
    billed = False


class AuthenticationFailed(ProviderError):
    """The provider does not accept our API key."""

    code = "PROVIDER_AUTHENTICATION"
    reach = Reach.RUN
    billed = False


class NotConfigured(AuthenticationFailed):
    """The provider is not configured so that it can be called; nothing was sent."""

    code = "PROVIDER_NOT_CONFIGURED"


class Denied(ProviderError):
    """The call was refused without the provider's own error code.

    The cause is this input, if a gateway filters content. It is the key, the account or the address
    if all inputs are refused: see `about_all`.
    """

    code = "PROVIDER_DENIED"
    billed = False

    def about_all(self) -> ProviderError:
        """The error that it is if all calls are refused so."""
        kinds = {402: QuotaExhausted, 404: ModelNotFound, 405: ModelNotFound}
        return kinds.get(self.status or 0, AuthenticationFailed)(
            f"All calls are refused, so it isn't about one input: {self}",
            detail=self.detail,
            status=self.status,
            request_id=self.request_id,
        )


class Intercepted(Denied):
    """A proxy or firewall sent a page of its own in place of the provider's answer."""

    code = "PROVIDER_INTERCEPTED"
    transient = True
    reach = Reach.EITHER
    falls_back = True


class InvalidProviderRequest(ProviderError):
    """The provider says that the request is wrong."""

    code = "INVALID_PROVIDER_REQUEST"
    billed = False


class ModelNotFound(InvalidProviderRequest):
    """The provider does not know the model, or its address is wrong."""

    code = "MODEL_NOT_FOUND"
    reach = Reach.RUN


class ContextTooLong(InvalidProviderRequest):
    """The input is longer than the model accepts."""

    code = "CONTEXT_TOO_LONG"
    limit: int | None = None
    """How many of its tokens the model accepts, where it said so."""
    given: int | None = None
    """How many the input has, where it said so."""


class TooManyTexts(ContextTooLong):
    """The provider accepts fewer texts in one call."""

    code = "TOO_MANY_TEXTS"
    most = 1
    """How many it accepts."""

    @classmethod
    def instead_of(cls, refusal: ProviderError, provider: str, most: int) -> Self:
        """The error for a refusal that turned out to be about the number of texts."""
        error = cls(
            f"{provider} takes at most {most} texts in one call (status {refusal.status}).",
            detail=refusal.detail,
            status=refusal.status,
            request_id=refusal.request_id,
            limits=refusal.limits,
        )
        error.most = most
        return error


class ContentRefused(ProviderError):
    """The provider's content filter refused the input or the answer."""

    code = "CONTENT_REFUSED"


class InputRefused(ContentRefused):
    """The provider's content filter refused the input, so no model has seen it."""

    billed = False


class BadResponse(ProviderError):
    """The provider's answer can't be used (wrong count, NaN, broken JSON)."""

    code = "BAD_PROVIDER_RESPONSE"
    transient = True
    most_tries = 2
    billed = True
    outcome = Outcome.ANSWERED


class AnsweredAsText(BadResponse):
    """The numbers of vectors are strings: this server always answers so."""

    transient = False
    reach = Reach.SERVER


class LargeAnswer(BadResponse):
    """The answer is larger than any real one, and was not read to its end."""

    transient = False


class OddVector(BadResponse):
    """The vector of one text has not its model's size; the others of the answer are kept."""

    transient = False
