"""What the outcome of a call means for the call, its items and the run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from promptstack.config.errors import PromptStackError, Reach
from promptstack.repositories.runs.outcomes import Ended
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.content_calls import Call
from promptstack.services.execution.failure_policy import bisect, is_bisected, is_retried
from promptstack.services.llm.errors import Denied, RateLimited
from promptstack.services.runs.shards.call_pool import CallFailed, CallRefused, Event

MIN_DENIALS = 20
"""How many calls of a shard must be denied, with none answered, before that means all calls."""


@dataclass(frozen=True)
class Decision:
    """What to do about a call that failed, or that got no permit."""

    error: PromptStackError
    ends: Sequence[Ended] = ()
    """The outcomes of its items, if they are given up."""
    retried: Call | None = None
    """The same call with one more try."""
    delayed: Call | None = None
    """The same call, at no cost of a try."""
    delay: float | None = None
    """How long this call alone waits; None if no other call can leave either."""
    parts: Sequence[Call] = ()
    """The calls to make instead."""
    ends_run: bool = False


class Outcome(NamedTuple):
    """An event of a call, and the decision about it if the call failed."""

    event: Event
    decision: Decision | None


class Decisions:
    """Decides about the failures of one shard."""

    def __init__(self, max_retries: int, backoff: Backoff) -> None:
        self._max_retries = max_retries
        self._backoff = backoff
        self._has_answers = False
        self._denied = 0

    def decide_all(self, events: Iterable[Event]) -> list[Outcome]:
        """Decide once about each event: bisecting a call uses up its waste budget."""
        outcomes = []
        for event in events:
            decision = None
            if isinstance(event, CallFailed):
                decision = self.decide(event.recorded.call, event.error)
            elif isinstance(event, CallRefused):
                decision = self.decide(event.call, event.error)
            outcomes.append(Outcome(event, decision))
        return outcomes

    def decide(self, call: Call, error: PromptStackError) -> Decision:
        """What a failure means for a call and its items."""
        if error.reach is Reach.RUN:
            return Decision(error, ends_run=True)
        if is_retried(call, error, self._max_retries):
            return self._retry(call, error)
        if is_bisected(call, error):
            return Decision(error, parts=bisect(call, error))
        return Decision(error, ends=ended_with(call, error))

    def _retry(self, call: Call, error: PromptStackError) -> Decision:
        if isinstance(error, RateLimited):
            # The limiter says whether other calls may leave.
            call = replace(call, refusals=call.refusals + 1)
            tries = call.refusals if error.retry_after is None else 1
            return Decision(
                error, delayed=call, delay=self._backoff.delay(tries, error.retry_after)
            )
        if not error.counts_as_failure:
            return Decision(error, delayed=call)
        call = replace(call, tries=call.tries + 1)
        delay = self._backoff.delay(call.tries, error.retry_after)
        return Decision(error, retried=call, delay=delay)

    def note_answers(self) -> None:
        """Note that the provider answers some calls: a denial is then about one input."""
        self._has_answers = True

    def error_of_run(self, decision: Decision, under_way: int) -> PromptStackError | None:
        """The error that ends the run, if every other call would fail in the same way.

        That is so once there are as many denials as calls under way, and no answer: a gateway
        denies at once, and an answer takes longer.
        """
        error = decision.error
        if decision.ends_run:
            return error
        if not (isinstance(error, Denied) and decision.ends):
            return None
        self._denied += 1
        if self._has_answers or self._denied < max(MIN_DENIALS, under_way):
            return None
        return error.about_all()


def ended_with(call: Call, error: PromptStackError) -> list[Ended]:
    """The outcomes of a call's items when they are given up."""
    return [
        Ended(position, error_code=error.code, error=str(error), detail=error.detail)
        for position in call.positions
    ]
