"""Why a call may not leave now."""

from promptstack.config.errors import PromptStackError, Reach
from promptstack.config.names import RATE_LIMIT_WAIT


class CallNotSent(PromptStackError):
    """The limiter did not let a call leave, so nothing is billed."""

    billed = False


class LimiterWait(CallNotSent):
    """The rate limit has no room for the call soon: not the job's fault, so it costs no retry."""

    code = RATE_LIMIT_WAIT
    transient = True
    counts_as_failure = False
    backs_off = False


class CircuitOpen(CallNotSent):
    """The provider has failed again and again; it is left alone for a while."""

    code = "CIRCUIT_OPEN"
    transient = True
    counts_as_failure = False
    backs_off = False
    falls_back = True


class RequestTooLarge(CallNotSent):
    """The call alone is larger than a minute's limit, so no waiting lets it through."""

    code = "REQUEST_OVER_LIMIT"


class QuotaSpent(CallNotSent):
    """A call has just been told that the account has no quota; this one wasn't sent."""

    code = "QUOTA_EXHAUSTED"
    reach = Reach.RUN
    counts_as_failure = False
    falls_back = True
