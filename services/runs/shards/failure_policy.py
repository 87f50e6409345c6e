"""What a failed call means for its items: this is the one place."""

from promptstack.config.errors import PromptStackError, Reach
from promptstack.repositories.models import Billing
from promptstack.repositories.runs.items import Ended
from promptstack.services.accounting.billing import billing_of
from promptstack.services.llm.errors import Denied, TooManyTexts
from promptstack.services.runs.shards.workload import Call, Parting


class BudgetReached(PromptStackError):
    """The run may cost no more: the next call could take it over its limit."""

    code = "BUDGET_REACHED"
    reach = Reach.RUN


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


DENIED_BY_ALL = 20
"""How many calls of a shard may be given up as denied, with none answered, before that is of all
calls; and more where more are under way."""
IN_VAIN = 4
"""How often all contents of a call may be paid for in vain from its first parting on, to find those
that make it fail: a single one is found for less than two."""


def run_ending_codes(kind: type[PromptStackError] = PromptStackError) -> set[str]:
    """The codes of the errors that end a run."""
    own = {kind.code} if kind.reach is Reach.RUN else set()
    return own.union(*map(run_ending_codes, kind.__subclasses__()))


def is_retried(call: Call, error: PromptStackError, max_retries: int) -> bool:
    """Whether the same call is made again."""
    if not error.transient or not error.counts_as_failure:
        return error.transient
    most = max_retries if error.most_tries is None else min(max_retries, error.most_tries - 1)
    if _may_be_one(call, error):
        # One bad text would make all of them be paid for, try by try: after the second they part.
        # What may be the server's own trouble gets all its tries to pass.
        first = most if error.reach is Reach.EITHER else min(most, 1)
        most = first if call.parting is None else 0
    return call.tries < most


def is_parted(call: Call, error: PromptStackError) -> bool:
    """Whether its texts are asked for again in two calls, to find the one that is refused.

    Where that costs money, no more often than a few bad ones need: it may be all of them.
    """
    if not _may_be_one(call, error):
        return False
    return call.parting is None or call.parting.left >= paid_in_vain(call, error)


def parts(call: Call, error: PromptStackError) -> list[Call]:
    """The two calls; where there were too many texts in one, as many as it takes."""
    if isinstance(error, TooManyTexts):
        return call.cut(error.most)
    return call.halves(call.parting or Parting(IN_VAIN * len(call.contents)))


def part(call: Call, error: PromptStackError) -> list[Call]:
    """The same calls, where what was paid in vain is counted at once."""
    made = parts(call, error)
    if (parting := made[0].parting) is not None:
        parting.left -= paid_in_vain(call, error)
    return made


def paid_in_vain(call: Call, error: PromptStackError) -> int:
    """How many contents of a failed call were, or may have been, paid for.

    Those of a server in trouble count as if they were: it may fail for all of them.
    """
    is_free = billing_of(error) is Billing.NOT_BILLED and error.reach is not Reach.EITHER
    return 0 if is_free else len(call.contents)


def about_all(denied: int, under_way: int, error: Denied) -> PromptStackError | None:
    """The error that ends the run when a shard had only denials so far; else None.

    There must be no fewer denials than calls under way: a gateway refuses at once, and an answer
    takes longer.
    """
    return error.about_all() if denied >= max(DENIED_BY_ALL, under_way) else None


def ended(call: Call, error: PromptStackError) -> list[Ended]:
    """How the items of a call end that is given up."""
    return [
        Ended(position, error_code=error.code, error=str(error), detail=error.detail)
        for position in call.positions
    ]


def _may_be_one(call: Call, error: PromptStackError) -> bool:
    return len(call.contents) > 1 and error.reach.is_bisected
