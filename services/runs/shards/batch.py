"""What one transaction of a shard stores, and what it did."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from promptstack.config.errors import PromptStackError
from promptstack.repositories.run_models import Run
from promptstack.services.execution.content_calls import Call
from promptstack.services.runs.shards.call_pool import (
    CallAnswered,
    CallFailed,
    CallPermitted,
    CallRefused,
    RecordedCall,
)
from promptstack.services.runs.shards.decisions import Decision, Outcome


class Batch:
    """The outcomes that one transaction stores."""

    def __init__(self, outcomes: Sequence[Outcome], *, may_begin: bool) -> None:
        events = [outcome.event for outcome in outcomes]
        self.permitted = [one for one in events if isinstance(one, CallPermitted)]
        self.refused = [one for one in events if isinstance(one, CallRefused)]
        self.answered = [one for one in events if isinstance(one, CallAnswered)]
        self.failed = [one for one in events if isinstance(one, CallFailed)]
        self.decisions: list[Decision] = [one.decision for one in outcomes if one.decision]
        self.tries = {
            position: one.retried.tries
            for one in self.decisions
            if one.retried is not None
            for position in one.retried.positions
        }
        over: list[CallAnswered | CallFailed] = [*self.answered, *self.failed]
        self.settled = [one.recorded for one in over]
        self.may_begin = may_begin and not any(one.ends_run for one in self.decisions)


@dataclass
class CommitResult:
    """What a transaction did; acted on once it is committed."""

    run: Run | None = None
    recorded: list[RecordedCall] = field(default_factory=list)
    unsent: list[CallPermitted] = field(default_factory=list)
    """Calls that have a permit and are not made: paid for by others, or over the budget."""
    reserved_elsewhere: list[Call] = field(default_factory=list)
    """Contents that another attempt asks for just now."""
    over_budget: list[Call] = field(default_factory=list)
    is_money_held: bool = False
    """Whether calls under way may cost less than is reserved for them: of other shards of the run,
    and of all that a spend cap counts."""
    refusal: PromptStackError | None = None
    """The error of a budget that paid for none of `over_budget`, if it wasn't the run's own."""
    reserved_usd: Decimal = Decimal(0)
    """What was reserved for new calls."""
    ended: int = 0
    is_ours: bool = True
    is_run_over: bool = False
    """Whether the run has ended, or was started anew for other shards to go on with."""


class Leaving(NamedTuple):
    """A call with a permit that is about to be recorded."""

    permitted: CallPermitted
    call: Call
    """Only the contents that this shard has reserved."""
    reserved_usd: Decimal = Decimal(0)
    """The most it can cost, if the run has a limit."""
