"""What a failed call means for its items: this is the one place."""

from config.errors import PromptStackError
from repositories.items import Ended
from services.errors import InvalidInput
from services.limiter.errors import QuotaSpent, RequestTooLarge
from services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ContentRefused,
    InvalidProviderRequest,
    ProviderTimeout,
    QuotaExhausted,
)
from services.runs.asking import Call


class BudgetReached(PromptStackError):
    """The run may cost no more: the next call could take it over its limit."""

    code = "BUDGET_REACHED"


class BudgetHeld(PromptStackError):
    """Calls under way may cost all that is left of the run's limit; they are waited for."""

    code = "BUDGET_HELD"
    transient = True
    counts_as_failure = False
    backs_off = False


ENDS_THE_RUN = (AuthenticationFailed, QuotaExhausted, QuotaSpent, BudgetReached)
"""Of the account, or the run itself: every other call would meet the same."""
RUN_ENDING_CODES = tuple({error.code for error in ENDS_THE_RUN})
MAY_BE_ONE_OF_MANY = (
    InvalidProviderRequest,
    ContentRefused,
    RequestTooLarge,
    BadResponse,
    ProviderTimeout,
    InvalidInput,
)
"""What one text of a call may have brought upon the others."""


def is_retried(call: Call, error: PromptStackError, max_retries: int) -> bool:
    """Whether the same call is made again."""
    if not error.transient or not error.counts_as_failure:
        return error.transient
    # One bad text would make all of them be paid for, try by try: after the second they part.
    most = min(max_retries, 1) if _may_be_one(call, error) else max_retries
    return call.tries < most


def is_parted(call: Call, error: PromptStackError) -> bool:
    """Whether its texts are asked for again in two calls, to find the one that is refused."""
    return _may_be_one(call, error)


def ended(call: Call, error: PromptStackError) -> list[Ended]:
    """How the items of a call end that is given up."""
    return [
        Ended(position, error_code=error.code, error=str(error), detail=error.detail)
        for position in call.positions
    ]


def _may_be_one(call: Call, error: PromptStackError) -> bool:
    return len(call.contents) > 1 and isinstance(error, MAY_BE_ONE_OF_MANY)
