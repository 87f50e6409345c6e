"""What a shard writes: in one transaction all that has come since the last."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.attempts import NewCall
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import AttemptState, Billing
from promptstack.repositories.runs.items import Ended
from promptstack.repositories.runs.models import Run, RunState
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.session import UnitOfWork
from promptstack.services.accounting.billing import credible, failed, taken
from promptstack.services.accounting.prices import Prices
from promptstack.services.execution.backoff import Backoff
from promptstack.services.limiter.limited_calls import LimitedCalls
from promptstack.services.llm.base import LLMService
from promptstack.services.runs.shards.call_pool import Answered, Failed, Permitted, Sent
from promptstack.services.runs.shards.failure_policy import ended
from promptstack.services.runs.shards.slots import InFlight
from promptstack.services.runs.shards.workload import Asking, Call


@dataclass(frozen=True)
class ShardTools:
    """What all shards of a worker use."""

    calls: LimitedCalls
    gate: InFlight
    prices: Prices
    backoff: Backoff
    show: Callable[[Run], None]
    """Told of the run's sums when they have changed."""
    clock: Callable[[], float] = time.monotonic


@dataclass
class Committed:
    """What a transaction did, to be acted on once it is committed."""

    run: Run | None = None
    sent: list[Sent] = field(default_factory=list)
    unsent: list[Permitted] = field(default_factory=list)
    """Permitted, and not made: paid for by others, or over the budget."""
    elsewhere: list[Call] = field(default_factory=list)
    """What another attempt is asking for just now."""
    over_budget: list[Call] = field(default_factory=list)
    is_money_held: bool = False
    """Whether calls of other shards are under way, which may leave some of it over."""
    done: int = 0
    reserved_usd: Decimal = Decimal(0)
    is_ours: bool = True
    is_over: bool = False
    """Whether the run has ended, or was started anew: other shards go on with it then."""


@dataclass(frozen=True, eq=False)
class Unfit(Failed):
    """An answer that was paid for and can't be taken."""

    answer: Any = None


@dataclass(frozen=True)
class Come:
    """What has come since the last transaction."""

    permitted: list[Permitted]
    answered: list[Answered]
    failed: list[Failed]
    ends: list[Ended]
    """Of items that are given up."""
    retried: list[Call]
    """What is asked again, with its new number of tries."""
    may_begin: bool


@dataclass
class ShardSums:
    """How many items a shard has, and how many of them have ended."""

    total: int = 0
    done: int = 0


class ShardStore:
    """Writes what one shard comes to."""

    def __init__(
        self,
        claim: Claim,
        run: Run,
        asking: Asking,
        service: LLMService,
        tools: ShardTools,
    ) -> None:
        self._claim = claim
        self._run = run
        self._asking = asking
        self._service = service
        self._tools = tools

    def write(self, unit: UnitOfWork, come: Come, sums: ShardSums) -> Committed:
        """One transaction. It may run twice, so it changes nothing but the ledger."""
        claim, committed = self._claim, Committed()
        permitted, answered, failed, ends = come.permitted, come.answered, come.failed, come.ends
        try:
            unit.steps.check_claim(claim)
        except ClaimLost:
            committed.is_ours = False
        if answered:
            faults = self._asking.keep(unit, [(one.sent.call, one.answer) for one in answered])
            ends = ends + [
                Ended(position, is_reused=number > 0)
                for one in answered
                for content in one.sent.call.contents
                if content.hash not in faults
                for number, position in enumerate(content.positions)
            ]
            for one in answered:
                for hash_ in faults.keys() & set(one.sent.call.hashes):
                    ends += ended(one.sent.call.only([hash_]), faults[hash_])
        change = self._settle_attempts(unit, answered, failed)
        ended_calls = [*(one.sent for one in answered), *(one.sent for one in failed)]
        over = [hash_ for sent in ended_calls for hash_ in sent.call.hashes]
        if committed.is_ours:
            ends = ends + self._begin(unit, come, committed, change)
            tries = {place: call.tries for call in come.retried for place in call.positions}
            unit.items.note_tries(self._run.id, tries)
            counted = unit.items.end(self._run.id, ends)
            committed.done = counted.succeeded + counted.failed
            change = replace(
                change,
                **vars(counted),
                reserved_usd=change.reserved_usd + committed.reserved_usd,
            )
            if committed.done:
                unit.steps.set_progress(claim, sums.done + committed.done, sums.total)
        else:
            committed.unsent = permitted
        # After others were taken: see `ReservationRepository.release`.
        unit.reservations.release(claim, over)
        run = committed.run = unit.runs.change(self._run.id, change)
        if run is not None:
            # Also where nothing was to begin: what is under way then is judged in a hurry.
            is_same = run.started_at == self._run.started_at
            committed.is_over |= run.state != RunState.RUNNING or not is_same
        return committed

    def cut_off(self, unit: UnitOfWork, cut: list[Sent], left: set[int]) -> None:
        """Record that calls were cut off; those that have not left were surely not billed."""
        unsent = [one for one in cut if one.attempt_id not in left]
        unit.attempts.settle_many(
            [{"attempt_id": id_, "state": AttemptState.CANCELLED} for id_ in sorted(left)]
        )
        news = unit.attempts.settle_many(
            [
                {
                    "attempt_id": one.attempt_id,
                    "state": AttemptState.CANCELLED,
                    "billing": Billing.NOT_BILLED,
                    "cost_usd": Decimal(0),
                }
                for one in unsent
            ]
        )
        unit.runs.change(
            self._run.id,
            Change(
                reserved_usd=-sum((o.most_usd for o in unsent if o.attempt_id in news), Decimal(0))
            ),
        )

    def _settle_attempts(
        self, unit: UnitOfWork, answered: list[Answered], failed: list[Failed]
    ) -> Change:
        """Record what calls came to; what that adds to the run's sums."""
        well = [
            {**self._took(one.sent, one.answer), "state": AttemptState.SUCCEEDED}
            for one in answered
        ]
        ill = [self._failure(one) for one in failed]
        # A commit may have gone well whose answer was lost: nothing is counted twice.
        news = unit.attempts.settle_many(well) | unit.attempts.settle_many(ill)
        reserved = {one.sent.attempt_id: one.sent.most_usd for one in answered}
        reserved |= {one.sent.attempt_id: one.sent.most_usd for one in failed}
        settled = [row for row in (*well, *ill) if row["attempt_id"] in news]
        # What was or may have been billed, and nobody knows how much, stays reserved for ever: a
        # limit is a limit.
        freed = [reserved[row["attempt_id"]] for row in settled if row["cost_usd"] is not None]
        return Change(
            calls=len(settled),
            input_tokens=sum(row["input_tokens"] or 0 for row in settled),
            output_tokens=sum(row["output_tokens"] or 0 for row in settled),
            cost_usd=sum((row["cost_usd"] or Decimal(0) for row in settled), Decimal(0)),
            unknown_cost=sum(row["cost_usd"] is None for row in settled),
            reserved_usd=-sum(freed, Decimal(0)),
            limiter_wait_seconds=sum(row["limiter_wait_seconds"] or 0.0 for row in settled),
        )

    def _failure(self, one: Failed) -> dict[str, Any]:
        if isinstance(one, Unfit):
            took = self._took(one.sent, one.answer)
        else:
            asking = self._asking
            took = failed(one.error, asking.provider, asking.model, self._tools.prices)
        return {
            **took,
            "attempt_id": one.sent.attempt_id,
            "error_code": one.error.code,
            "error": str(one.error),
            "detail": one.error.detail,
            "state": AttemptState.FAILED,
        }

    def _took(self, sent: Sent, answer: Any) -> dict[str, Any]:
        asking = self._asking
        took = taken(answer, asking.provider, asking.model, sent.permit, self._tools.prices)
        return {"attempt_id": sent.attempt_id, **took}

    def _begin(
        self, unit: UnitOfWork, come: Come, committed: Committed, settled: Change
    ) -> list[Ended]:
        """Record calls that are about to leave; outcomes of items that were paid for meanwhile."""
        permitted = come.permitted
        if not permitted:
            return []
        committed.is_over = not unit.runs.is_on(self._run)
        if committed.is_over or not come.may_begin:
            committed.unsent = permitted
            return []
        wanted = [hash_ for one in permitted for hash_ in one.call.hashes]
        ours = unit.reservations.take(self._claim, wanted)
        stored = self._asking.find_stored(unit, list(ours))
        if stored:
            unit.reservations.release(self._claim, list(stored))
        found: list[Ended] = []
        leaving: list[tuple[Permitted, Call]] = []
        for one in permitted:
            found += [
                Ended(position, is_reused=True) for position in one.call.only(stored).positions
            ]
            elsewhere = one.call.only([hash_ for hash_ in one.call.hashes if hash_ not in ours])
            if elsewhere.contents:
                committed.elsewhere.append(elsewhere)
            call = one.call.only(ours - stored)
            if call.contents:
                leaving.append((one, call))
            else:
                committed.unsent.append(one)
        self._start(unit, leaving, committed, settled)
        return found

    def _start(
        self,
        unit: UnitOfWork,
        leaving: list[tuple[Permitted, Call]],
        committed: Committed,
        settled: Change,
    ) -> None:
        affordable = self._affordable(unit, leaving, committed, settled)
        if not affordable:
            return
        rows = []
        for (one, call), _ in affordable:
            need = self._asking.need(call, self._service)
            expected = {"input_tokens": need.input_tokens, "output_tokens": need.output_tokens}
            rows.append(
                NewCall(
                    call=one.number,
                    items=len(call.contents),
                    expected_tokens=credible(need.input_tokens + need.output_tokens),
                    expected_cost_usd=self._tools.prices.cost(
                        self._asking.provider, self._asking.model, **expected
                    ),
                )
            )
        for ((one, call), most), (attempt_id, is_new) in zip(
            affordable, unit.attempts.start_many(self._claim, rows), strict=True
        ):
            committed.sent.append(Sent(call, one.permit, attempt_id, most))
            committed.reserved_usd += most if is_new else Decimal(0)

    def _affordable(
        self,
        unit: UnitOfWork,
        leaving: list[tuple[Permitted, Call]],
        committed: Committed,
        settled: Change,
    ) -> list[tuple[tuple[Permitted, Call], Decimal]]:
        """The calls that the run's limit leaves money for, each with the most it can cost."""
        if self._run.max_cost_usd is None:
            return [(one, Decimal(0)) for one in leaving]
        run = unit.runs.lock(self._run.id)
        if run is None or not unit.runs.is_on(self._run):
            # It has ended, and may have begun anew with another limit.
            committed.is_over = True
            committed.unsent += [permitted for permitted, _ in leaving]
            return []
        left = Decimal(0)
        if run.max_cost_usd is not None:
            left = run.max_cost_usd - run.cost_usd - run.reserved_usd
            # What this very transaction adds to the run's row comes last in it.
            left -= settled.cost_usd + settled.reserved_usd
        # Where the answer to a commit was lost: what it has reserved is in those sums.
        begun = unit.attempts.begun(self._claim, [permitted.number for permitted, _ in leaving])
        affordable = []
        for permitted, call in leaving:
            most = self._most_usd(call)
            if most is not None and permitted.number in begun:
                affordable.append(((permitted, call), most))
            elif most is not None and most <= left:
                left -= most
                affordable.append(((permitted, call), most))
            else:
                committed.over_budget.append(call)
                committed.unsent.append(permitted)
        if committed.over_budget:
            over = [hash_ for call in committed.over_budget for hash_ in call.hashes]
            unit.reservations.release(self._claim, over)
            # Under the run's lock: what these cost has not been taken into account.
            committed.is_money_held = unit.attempts.are_under_way(
                self._run.id, but=self._claim.job_id
            )
        return affordable

    def _most_usd(self, call: Call) -> Decimal | None:
        most = self._asking.most(call)
        if most is None:
            return None
        return self._tools.prices.cost(
            self._asking.provider, self._asking.model, input_tokens=most[0], output_tokens=most[1]
        )
