"""What a failed call means for its items: this is the one place."""

from config.errors import PromptStackError
from repositories.items import Ended
from repositories.models import Billing
from services.billing import billing_of
from services.errors import InvalidInput
from services.limiter.errors import QuotaSpent, RequestTooLarge
from services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ContentRefused,
    InvalidProviderRequest,
    ModelNotFound,
    ProviderTimeout,
    QuotaExhausted,
)
from services.runs.asking import Call, Parting


class BudgetReached(PromptStackError):
    """The run may cost no more: the next call could take it over its limit."""

    code = "BUDGET_REACHED"


class BudgetHeld(PromptStackError):
    """Calls under way may cost all that is left of the run's limit; they are waited for."""

    code = "BUDGET_HELD"
    transient = True
    counts_as_failure = False
    backs_off = False


class TriedLater(PromptStackError):
    """Items that have failed are tried again after a while; nothing else of the shard is left."""

    code = "TRIED_LATER"
    transient = True
    counts_as_failure = False
    backs_off = False


ENDS_THE_RUN = (AuthenticationFailed, ModelNotFound, QuotaExhausted, QuotaSpent, BudgetReached)
"""Of the account, or the run itself: every other call would meet the same."""
RUN_ENDING_CODES = tuple({error.code for error in ENDS_THE_RUN})
IN_VAIN = 4
"""How often all contents of a call may be paid for in vain from its first parting on, to find those
that make it fail: a single one is found for less than two."""
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
    most = max_retries
    if _may_be_one(call, error):
        most = min(max_retries, 1) if call.parting is None else 0
    return call.tries < most


def is_parted(call: Call, error: PromptStackError) -> bool:
    """Whether its texts are asked for again in two calls, to find the one that is refused.

    Where that costs money, no more often than a few bad ones need: it may be all of them.
    """
    if not _may_be_one(call, error):
        return False
    return call.parting is None or call.parting.left >= paid_in_vain(call, error)


def parts(call: Call) -> list[Call]:
    """The two calls."""
    return call.halves(call.parting or Parting(IN_VAIN * len(call.contents)))


def paid_in_vain(call: Call, error: PromptStackError) -> int:
    """How many contents of a failed call were, or may have been, paid for."""
    return 0 if billing_of(error) is Billing.NOT_BILLED else len(call.contents)


def ended(call: Call, error: PromptStackError) -> list[Ended]:
    """How the items of a call end that is given up."""
    return [
        Ended(position, error_code=error.code, error=str(error), detail=error.detail)
        for position in call.positions
    ]


def _may_be_one(call: Call, error: PromptStackError) -> bool:
    return len(call.contents) > 1 and isinstance(error, MAY_BE_ONE_OF_MANY)
