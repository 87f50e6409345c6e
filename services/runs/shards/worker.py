"""What a worker does with a shard: many calls under way, and what they bring stored together."""

import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import partial

from promptstack.config.errors import PromptStackError, Reach
from promptstack.repositories.errors import ClaimLost, LedgerRefused, TransientLedgerError
from promptstack.repositories.models import JobState
from promptstack.repositories.runs.items import Counted, Ended
from promptstack.repositories.runs.models import Run
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import UnitOfWork
from promptstack.services.errors import DeadlinePassed, EmbeddedElsewhere
from promptstack.services.execution.job_context import JobContext
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import Denied, RateLimited
from promptstack.services.runs.shards.call_pool import (
    Answered,
    CallSession,
    Event,
    Failed,
    Permitted,
    Refused,
    Sent,
)
from promptstack.services.runs.shards.failure_policy import (
    BudgetHeld,
    BudgetReached,
    about_all,
    ended,
    is_parted,
    is_retried,
    paid_in_vain,
    parts,
)
from promptstack.services.runs.shards.judging import Judging, unfit
from promptstack.services.runs.shards.queue import WaitingCalls
from promptstack.services.runs.shards.slots import places
from promptstack.services.runs.shards.store import (
    Come,
    Committed,
    ShardStore,
    ShardSums,
    ShardTools,
)
from promptstack.services.runs.shards.workload import Asking, Call, Content, contents_of

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.05
"""Between two looks for a free place, where other shards of the run have them all."""
LOOK_AGAIN_SECONDS = 1.0
SHARED_POLL_SECONDS = 0.25
PATIENCE_SECONDS = 3.0
"""How long a shard with nothing under way waits in a worker; then in the queue."""


@dataclass(frozen=True)
class Decision:
    """What becomes of a call that failed, or was not let go."""

    error: PromptStackError
    ends: list[Ended] = field(default_factory=list)
    """Of its items, where it is given up."""
    retried: Call | None = None
    """The same call with one try more."""
    waits: Call | None = None
    """The same call, which costs it no try."""
    delay: float | None = None
    """How long this call alone waits; None where there is no room for any."""
    parts: list[Call] = field(default_factory=list)
    """What is asked instead."""
    in_vain: int = 0
    """How many contents were paid for with the call whose parts are asked."""
    is_fatal: bool = False
    """For the whole run."""


class ShardWork:
    """One shard in the hands of this worker, in a thread of its own."""

    def __init__(
        self,
        job: JobContext,
        run: Run,
        asking: Asking,
        service: LLMService,
        tools: ShardTools,
    ) -> None:
        self._job = job
        self._claim = job.claim
        self._run = run
        self._asking = asking
        self._service = service
        self._tools = tools
        self._store = ShardStore(job.claim, run, asking, service, tools)
        self._session = CallSession(
            asking, service, tools.calls, partial(tools.gate.under_way, run.id, run.in_flight)
        )
        self._waiting = WaitingCalls(tools.clock)
        self._elsewhere: list[Call] = []
        self._judging = Judging(asking, tools.clock)
        self._asked = 0
        """Calls that wait for leave."""
        self._under_way: dict[int, Sent] = {}
        self._room = places(run.in_flight)
        """How many may wait for leave at once: fewer when the limiter has sent some away."""
        self._idle_since: float | None = None
        self._held_since: float | None = None
        """Since when other shards' calls hold all that is left of the run's limit."""
        self._answered = self._denied = 0
        """Calls that have an answer, and those that were given up as denied."""
        self._fatal: PromptStackError | None = None
        self._is_over = False
        """Whether the run has ended: what is under way is kept, and nothing begins."""
        self._sums = ShardSums()
        self._shown_at = 0.0

    def do(self) -> None:
        """Bring every open item of the shard to its outcome.

        Raises `ClaimLost`, `CancelledError`, `DeadlinePassed`, what ends the whole run, and what
        the shard has to wait for longer than a worker should.
        """
        first, last = self._claim.request["first"], self._claim.request["last"]
        self._load(first, last)
        self._session.wait_until_begun(self._job.begin(self._session.run()))
        try:
            while self._has_work():
                self._check()
                self._ask_leave()
                calls = self._asked + len(self._under_way)
                self._settle(self._come(calls))
        finally:
            self._session.end()
            self._close()
        if self._fatal is not None:
            raise self._fatal
        if self._job.is_closing and self._is_undone():
            self._job.hand_back()

    def _is_undone(self) -> bool:
        return not self._is_over and self._sums.done < self._sums.total

    @property
    def sums(self) -> dict[str, int]:
        """What the shard came to: numbers only, for everybody to see."""
        return {"items": self._sums.total, "done": self._sums.done}

    def _load(self, first: int, last: int) -> None:
        """Find what is open, and end at once what was paid for before."""

        def look(unit: UnitOfWork) -> tuple[list[Content], int, int, Run | None]:
            unit.steps.check_claim(self._claim)
            contents = contents_of(unit.items.open_in(self._run.id, first, last))
            stored = self._asking.find_stored(unit, [content.hash for content in contents])
            found = [
                Ended(position, is_reused=True)
                for content in contents
                if content.hash in stored
                for position in content.positions
            ]
            counted = unit.items.end(self._run.id, found)
            run = unit.runs.change(self._run.id, _of(counted))
            left = [content for content in contents if content.hash not in stored]
            total = sum(len(content.positions) for content in contents)
            return left, total, len(found), run

        left, self._sums.total, self._sums.done, run = self._job.in_ledger(look)
        # Not in the transaction, as it goes through all texts: see `repositories.session`.
        self._waiting.add(self._asking.calls(left, self._service))
        self._show(run)

    def _has_work(self) -> bool:
        if not self._may_begin():
            # What is under way is paid for, and waited for; what has not left is not.
            self._session.hold()
            is_out = any(map(self._session.has_left, self._under_way.values()))
            return is_out or (bool(self._asked) and not self._job.is_closing)
        return bool(self._under_way or self._asked or self._waiting or self._elsewhere)

    def _come(self, calls: int) -> list[Event]:
        """Wait for what happens to the `calls`; what has come is judged."""
        if self._is_over or self._job.is_closing:
            # Nothing begins any more, and somebody waits for the place.
            self._judging.hurry()
        if self._judging:
            self._judging.add(self._session.events_now())
        else:
            self._judging.add(self._session.events(self._patience(), calls))
        return self._judging.some()

    def _check(self) -> None:
        if self._job.is_cancelled:
            self._job.hand_back()
        if self._job.seconds_left() <= 0:
            raise DeadlinePassed("The run's deadline passed before all of its items were done.")

    def _ask_leave(self) -> None:
        """Ask for as many calls as there are places."""
        if not self._may_begin():
            return
        wanted = min(self._waiting.count_ready(), self._room - self._asked)
        given = self._tools.gate.take(self._run.id, self._run.in_flight, wanted)
        self._asked += given
        taken = self._waiting.take(given)
        calls = [part for one in taken for part in self._asking.fitting(one, self._service)]
        self._waiting.put_back(calls[given:])
        self._session.ask_leave(calls[:given])

    def _may_begin(self) -> bool:
        return not (self._job.is_closing or self._is_over or self._fatal is not None)

    def _patience(self) -> float:
        """How long to wait for the next event. Raises what is waited for where that is too long."""
        now = self._tools.clock()
        wait, cause = self._waiting.wait()
        wait = max(LOOK_SECONDS, wait)
        if self._under_way or self._asked:
            self._idle_since = None
            return min(wait, LOOK_AGAIN_SECONDS) if self._waiting else LOOK_AGAIN_SECONDS
        if not self._may_begin():
            return 0.0
        self._idle_since = self._idle_since or now
        if not self._waiting:
            self._look_elsewhere()
            wait = SHARED_POLL_SECONDS
            cause = EmbeddedElsewhere(
                "Another job asks for the same contents; the shard waits for them.",
                retry_after=1.0,
            )
        waited = now - self._idle_since
        if cause is not None and max(wait, waited) > PATIENCE_SECONDS:
            raise cause
        return min(wait, LOOK_AGAIN_SECONDS)

    def _look_elsewhere(self) -> None:
        """See what others have paid for by now, and take over what they have given up."""
        waiting = self._elsewhere

        def look(unit: UnitOfWork) -> tuple[set[bytes], set[bytes], Counted, Run | None]:
            unit.steps.check_claim(self._claim)
            hashes = [hash_ for call in waiting for hash_ in call.hashes]
            free = unit.reservations.take(self._claim, hashes)
            stored = self._asking.find_stored(unit, hashes)
            unit.reservations.release(self._claim, list(stored))
            found = [
                Ended(position, is_reused=True)
                for call in waiting
                for position in call.only(stored).positions
            ]
            counted = unit.items.end(self._run.id, found)
            return stored, free, counted, unit.runs.change(self._run.id, _of(counted))

        stored, free, counted, run = self._job.in_ledger(look)
        self._sums.done += counted.succeeded
        self._waiting.add(call for one in waiting if (call := one.only(free - stored)).contents)
        self._elsewhere = [
            call for one in waiting if (call := one.only(set(one.hashes) - free - stored)).contents
        ]
        self._show(run)

    def _settle(self, events: list[Event]) -> None:
        """Store what has come, record what is to leave, in one transaction; then act on it."""
        if not events:
            return
        try:
            recorded = self._record(events)
        except ClaimLost:
            raise  # what came is settled
        except TransientLedgerError:
            self._let_go(events)
            raise
        except Exception as error:
            # One answer that can't be stored must not take others with it, which are paid for.
            if len(events) > 1:
                self._settle_apart(events)
            elif isinstance(events[0], Answered):
                self._settle([unfit(events[0], error)])
            else:
                self._let_go(events)
                raise
        else:
            # Not within the same `try`: what is committed is neither stored nor sent again.
            self._act(*recorded)

    def _settle_apart(self, events: list[Event]) -> None:
        met: Exception | None = None
        for number, event in enumerate(events):
            try:
                self._settle([event])
            except (TransientLedgerError, LedgerRefused):
                self._let_go(events[number + 1 :])  # not even an error can be written
                raise
            except Exception as error:  # noqa: BLE001 - it is raised when all is settled
                met = met or error
        if met is not None:
            raise met

    def _let_go(self, events: list[Event]) -> None:
        self._session.give_back([one.permit for one in events if isinstance(one, Permitted)])

    def _record(self, events: list[Event]) -> tuple[Come, list[Refused], list[Decision], Committed]:
        """Store it. Changes nothing but the ledger, as it may have to be done again."""
        permitted = [event for event in events if isinstance(event, Permitted)]
        refused = [event for event in events if isinstance(event, Refused)]
        answered = [event for event in events if isinstance(event, Answered)]
        failed = [event for event in events if isinstance(event, Failed)]
        decided = [self._decide(one.sent.call, one.error) for one in failed]
        decided += [self._decide(one.call, one.error) for one in refused]
        ends = [end for one in decided for end in one.ends]
        may_begin = self._may_begin() and not any(one.is_fatal for one in decided)
        retried = [one.retried for one in decided if one.retried is not None]
        if self._run.max_cost_usd is not None:
            for one in permitted:
                self._asking.most(one.call)  # computed here, as it goes through the whole text
        come = Come(permitted, answered, failed, ends, retried, may_begin)
        committed = self._job.in_ledger(lambda unit: self._store.write(unit, come, self._sums))
        return come, refused, decided, committed

    def _act(
        self, come: Come, refused: list[Refused], decided: list[Decision], committed: Committed
    ) -> None:
        permitted = come.permitted
        over = [*(one.sent for one in come.answered), *(one.sent for one in come.failed)]
        self._asked -= len(permitted) + len(refused)
        for sent in over:
            del self._under_way[sent.attempt_id]
        self._under_way |= {sent.attempt_id: sent for sent in committed.sent}
        free = len(over) + len(refused) + len(permitted) - len(committed.sent)
        self._tools.gate.give_back(self._run.id, free)
        if permitted:
            self._room = min(places(self._run.in_flight), self._room + len(permitted))
        self._session.send(committed.sent, self._job.seconds_left())
        self._session.give_back([one.permit for one in committed.unsent])
        self._answered += len(come.answered)
        for one in decided:
            self._follow(one)
        self._elsewhere += committed.elsewhere
        self._is_over |= committed.is_over
        self._wait_for_budget(committed)
        self._sums.done += committed.done
        self._show(committed.run)
        if not committed.is_ours:
            raise ClaimLost(f"Shard {self._claim.job_id} is no longer this attempt's.")

    def _decide(self, call: Call, error: PromptStackError) -> Decision:
        """What a failure means for a call and its items."""
        if error.reach is Reach.RUN:
            return Decision(error, is_fatal=True)
        if is_retried(call, error, self._run.max_retries):
            if isinstance(error, RateLimited):
                # Whether others may leave is for the limiter to say.
                call = replace(call, refusals=call.refusals + 1)
                tries = call.refusals if error.retry_after is None else 1
                delay = self._tools.backoff.delay(tries, error.retry_after)
                return Decision(error, waits=call, delay=delay)
            if not error.counts_as_failure:
                return Decision(error, waits=call)
            tries = call.tries + 1
            delay = self._tools.backoff.delay(tries, error.retry_after)
            return Decision(error, retried=replace(call, tries=tries), delay=delay)
        if is_parted(call, error):
            return Decision(error, parts=parts(call, error), in_vain=paid_in_vain(call, error))
        return Decision(error, ends=ended(call, error))

    def _follow(self, decision: Decision) -> None:
        """Do what was decided."""
        error = decision.error
        if decision.is_fatal:
            self._fatal = error
        if isinstance(error, Denied) and decision.ends:
            self._denied += 1
            if not self._answered:
                fatal = about_all(self._denied, len(self._under_way), error)
                self._fatal = fatal or self._fatal
        # Before the others: whether it is one text or all of them is soon known.
        self._waiting.put_back(decision.parts)
        if decision.in_vain and (parting := decision.parts[0].parting) is not None:
            parting.left -= decision.in_vain
        again = decision.retried or decision.waits
        if again is not None and decision.delay is not None:
            self._waiting.delay(again, decision.delay, error)
        elif again is not None:
            # There is no room for it now, nor for others that would ask.
            self._waiting.put_back([again])
            self._room = max(1, self._asked)
            is_idle = not (self._under_way or self._asked)
            told = error.retry_after or LOOK_SECONDS
            self._waiting.hold(told if is_idle else min(told, LOOK_AGAIN_SECONDS), error)

    def _wait_for_budget(self, committed: Committed) -> None:
        """Wait for what calls under way really cost; with none under way, no money is left."""
        over, now = committed.over_budget, self._tools.clock()
        if not over or self._under_way or not committed.is_money_held:
            self._held_since = None
        if not over:
            return
        if self._under_way:
            self._waiting.hold(LOOK_SECONDS)
        elif committed.is_money_held:
            self._held_since = self._held_since or now
            is_long = now - self._held_since > PATIENCE_SECONDS
            # Longer than a worker should wait: the shard goes back to the queue.
            self._waiting.hold(
                2 * PATIENCE_SECONDS if is_long else SHARED_POLL_SECONDS,
                BudgetHeld(
                    "Calls under way may cost all that is left of the run's limit; the shard "
                    "waits.",
                    retry_after=1.0,
                ),
            )
        elif all(len(call.contents) == 1 for call in over):
            self._fatal = BudgetReached(
                f"The run was stopped before it could cost more than ${_plain(self._run)}; "
                "raise the limit with `promptstack runs retry --max-cost`."
            )
        else:
            # Of fewer texts the money may be enough.
            over = [half for call in over for half in call.halves()]
        self._waiting.put_back(over)

    def _close(self) -> None:
        """Keep what has come, and note what was cut off."""
        self._judging.add(self._session.events_now())
        events = self._judging.rest()
        permitted = [one for one in events if isinstance(one, Permitted)]
        self._session.give_back([one.permit for one in permitted])
        try:
            with suppress(ClaimLost):  # what came is settled; what was cut off is not
                self._settle([one for one in events if isinstance(one, Answered | Failed)])
        finally:
            self._cut_off()

    def _cut_off(self) -> None:
        cut = list(self._under_way.values())
        left = {one.attempt_id for one in cut if self._session.has_left(one)}
        self._session.give_back([one.permit for one in cut if one.attempt_id not in left])
        try:
            if cut:
                self._job.in_ledger(lambda unit: self._store.cut_off(unit, cut, left))
        finally:
            self._tools.gate.give_back(self._run.id, self._asked + len(self._under_way))
            self._asked = 0
            self._under_way.clear()

    def _show(self, run: Run | None) -> None:
        if run is not None:
            self._tools.show(run)
        now = self._tools.clock()
        if now - self._shown_at >= LOOK_AGAIN_SECONDS:
            self._shown_at = now
            self._job.show(JobState.RUNNING, self._sums.done, self._sums.total)


def _plain(run: Run) -> str:
    return f"{(run.max_cost_usd or Decimal(0)).normalize():f}"


def _of(counted: Counted) -> Change:
    return Change(**vars(counted))
