"""What can go wrong at a provider; each service translates its SDK's errors into these.

* ProviderError
  * RateLimited
  * QuotaExhausted
    * ModelQuotaExhausted
  * Overloaded
    * ServerBroke
  * ProviderTimeout
  * ConnectionFailed
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
    * OddVector

What an error means is told by the attributes of its class, which `PromptStackError` explains:
`transient`, `counts_as_failure`, `most_tries` and `backs_off` (whether it is tried again), `reach`
(whether its call is bisected, and whether it ends the run), `billed` and `falls_back`; `outcome` is
what the limiter and the circuit learn. Runs, documents and single jobs all go by them.
`docs/operating.md` has them as a table.
"""

from typing import ClassVar, Self

from promptstack.config.errors import PromptStackError, Reach
from promptstack.services.llm.answers import LimitReport, Outcome, Usage
from promptstack.services.text import make_storable

HIDDEN = "[hidden]"
SHORTEST_KEY = 8


class ProviderError(PromptStackError):
    """The provider didn't give a usable answer."""

    code = "EXTERNAL_SERVICE_ERROR"

    outcome: ClassVar[Outcome] = Outcome.REFUSED
    """What it says of the provider: of one that is refused, nothing but that it is well."""

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
        # A provider's words and headers may hold what can't be stored or logged.
        super().__init__(
            make_storable(message),
            detail=detail and make_storable(detail),
            retry_after=retry_after,
        )
        self.status = status
        self.limits = limits
        self.usage = usage
        """What the call took, where the provider said so all the same."""
        self.note = note
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
    reach = Reach.SERVER
    billed = False
    outcome = Outcome.THROTTLED


class QuotaExhausted(ProviderError):
    """The account has no money or quota left; no waiting cures that."""

    code = "QUOTA_EXHAUSTED"
    counts_as_failure = False
    reach = Reach.RUN
    billed = False
    falls_back = True
    outcome = Outcome.QUOTA


class ModelQuotaExhausted(QuotaExhausted):
    """The quota of one model is used up, such as a day's; other models have their own."""

    outcome = Outcome.MODEL_QUOTA


class Overloaded(ProviderError):
    """The provider is up but can't serve anybody now (503, 529)."""

    code = "PROVIDER_OVERLOADED"
    transient = True
    reach = Reach.SERVER
    billed: ClassVar[bool | None] = False
    falls_back = True
    outcome = Outcome.FAILED


class ServerBroke(Overloaded):
    """The provider broke over the call (500, 502, 504): its own trouble, or that of one input."""

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


class NeverSent(ConnectionFailed):
    """There was no connection to the provider, so that nothing was sent and nothing billed."""

    reach = Reach.SERVER
    billed = False


class AuthenticationFailed(ProviderError):
    """The provider refused our credentials."""

    code = "PROVIDER_AUTHENTICATION"
    reach = Reach.RUN
    billed = False


class NotConfigured(AuthenticationFailed):
    """The provider can't be asked as it is set up here: nothing was sent."""

    code = "PROVIDER_NOT_CONFIGURED"


class Denied(ProviderError):
    """Refused, and not in the provider's own words: this input is to blame, or the key is.

    Gateways answer so for content that they don't let through. Where all inputs meet it, it is the
    key, the account or the address: see `about_all`.
    """

    code = "PROVIDER_DENIED"
    billed = False

    def about_all(self) -> ProviderError:
        """What it means where everything that is asked for meets it."""
        kinds = {402: QuotaExhausted, 404: ModelNotFound, 405: ModelNotFound}
        return kinds.get(self.status or 0, AuthenticationFailed)(
            f"All calls are refused, so it isn't about one input: {self}",
            detail=self.detail,
            status=self.status,
            request_id=self.request_id,
        )


class Intercepted(Denied):
    """A page of a proxy or firewall came in place of the provider's answer: it says nothing."""

    code = "PROVIDER_INTERCEPTED"
    transient = True
    reach = Reach.EITHER
    falls_back = True


class InvalidProviderRequest(ProviderError):
    """The provider says the request itself is wrong."""

    code = "INVALID_PROVIDER_REQUEST"
    billed = False


class ModelNotFound(InvalidProviderRequest):
    """The provider knows no such model, or its address is wrong."""

    code = "MODEL_NOT_FOUND"
    reach = Reach.RUN


class ContextTooLong(InvalidProviderRequest):
    """The input is longer than the model takes."""

    code = "CONTEXT_TOO_LONG"
    limit: int | None = None
    """How many of its own tokens it takes, where it said so."""
    given: int | None = None
    """How many it got, where it said so."""


class TooManyTexts(ContextTooLong):
    """The provider takes fewer texts in one call."""

    code = "TOO_MANY_TEXTS"
    most = 1
    """How many it takes."""

    @classmethod
    def instead_of(cls, refusal: ProviderError, provider: str, most: int) -> Self:
        """What a refusal is that was found to be about the number of texts."""
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
    """The provider answered something that can't be an answer (wrong count, NaN, broken JSON)."""

    code = "BAD_PROVIDER_RESPONSE"
    transient = True
    most_tries = 2
    billed = True
    outcome = Outcome.ANSWERED


class AnsweredAsText(BadResponse):
    """The numbers of vectors came as text, which is how this server always answers."""

    transient = False
    reach = Reach.SERVER


class OddVector(BadResponse):
    """The vector of one text has another size than its model; the others of its answer are kept."""

    transient = False
