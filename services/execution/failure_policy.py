"""What a failed call means for its contents: try it again, bisect it, or give it up."""

from dataclasses import replace

from promptstack.config.errors import PromptStackError, Reach
from promptstack.repositories.models import Billing
from promptstack.services.accounting.billing import billing_of
from promptstack.services.execution.content_calls import Call, WasteBudget
from promptstack.services.llm.errors import TooManyTexts

MAX_WASTE_FACTOR = 4
"""Bisection may waste at most four times the call's contents. One bad content costs less than two
times."""


def is_retried(call: Call, error: PromptStackError, max_retries: int) -> bool:
    """Whether the same call is made again."""
    if not error.transient or not error.counts_as_failure:
        return error.transient
    retries = max_retries if error.most_tries is None else min(max_retries, error.most_tries - 1)
    if _may_be_one_content(call, error):
        # One bad content would make us pay for all of them at every try, so bisect after the
        # second. What may be the server's own trouble gets all its tries to pass.
        whole = retries if error.reach is Reach.EITHER else min(retries, 1)
        retries = whole if call.waste_budget is None else 0
    return call.tries < retries


def is_bisected(call: Call, error: PromptStackError) -> bool:
    """Whether its contents are asked for in two calls, to find the one that is refused.

    Where that costs money it ends with the waste budget: all contents may be bad.
    """
    if not _may_be_one_content(call, error):
        return False
    return call.waste_budget is None or call.waste_budget.left >= wasted(call, error)


def bisect(call: Call, error: PromptStackError) -> list[Call]:
    """Split it in two and count what was wasted; as many calls as the provider asks for."""
    if isinstance(error, TooManyTexts):
        return call.split(error.most)
    budget = call.waste_budget or WasteBudget(MAX_WASTE_FACTOR * len(call.contents))
    budget.left -= wasted(call, error)
    return replace(call, waste_budget=budget).halves()


def wasted(call: Call, error: PromptStackError) -> int:
    """How many contents of a failed call were, or may have been, paid for.

    A server in trouble counts as if we had paid: it may fail for all of them.
    """
    is_free = billing_of(error) is Billing.NOT_BILLED and error.reach is not Reach.EITHER
    return 0 if is_free else len(call.contents)


def _may_be_one_content(call: Call, error: PromptStackError) -> bool:
    return len(call.contents) > 1 and error.reach.is_bisected
