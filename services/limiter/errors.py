"""Why the limiter does not let a call be sent."""

from promptstack.config.errors import PromptStackError, Reach
from promptstack.config.names import RATE_LIMIT_WAIT


class CallNotSent(PromptStackError):
    """The limiter did not let a call leave, so nothing is billed."""

    billed = False


class LimiterWait(CallNotSent):
    """The rate limit has no room for the call soon. This uses up no retry."""

    code = RATE_LIMIT_WAIT
    transient = True
    counts_as_failure = False
    backs_off = False


class CircuitOpen(CallNotSent):
    """The provider has failed repeatedly and is left alone for a while."""

    code = "CIRCUIT_OPEN"
    transient = True
    counts_as_failure = False
    backs_off = False
    falls_back = True


class RequestTooLarge(CallNotSent):
    """The call alone needs more than a minute's limit, so waiting does not help."""

    code = "REQUEST_OVER_LIMIT"


class QuotaSpent(CallNotSent):
    """The provider has just reported that the account has no quota; the call was not sent."""

    code = "QUOTA_EXHAUSTED"
    reach = Reach.RUN
    counts_as_failure = False
    falls_back = True
