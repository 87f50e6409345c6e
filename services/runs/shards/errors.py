"""Why a shard, or its whole run, can't go on."""

from promptstack.config.errors import PromptStackError, Reach


class BudgetReached(PromptStackError):
    """The run may cost no more: the next call could take it over its limit."""

    code = "BUDGET_REACHED"
    reach = Reach.RUN


class BudgetHeld(PromptStackError):
    """Calls under way may cost all that is left of the run's limit; the shard waits for them."""

    code = "BUDGET_HELD"
    transient = True
    counts_as_failure = False
    backs_off = False


class TriedLater(PromptStackError):
    """Items that failed are tried again after a while; nothing else of the shard is left."""

    code = "TRIED_LATER"
    transient = True
    counts_as_failure = False
    backs_off = False


def run_ending_codes(kind: type[PromptStackError] = PromptStackError) -> set[str]:
    """The codes of the errors that end a run."""
    own = {kind.code} if kind.reach is Reach.RUN else set()
    return own.union(*map(run_ending_codes, kind.__subclasses__()))
