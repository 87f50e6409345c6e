"""The run's cost limit, and its owner's spend caps: only calls that they surely pay for leave."""

from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal

from promptstack.config.errors import PromptStackError
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.run_models import Run
from promptstack.repositories.runs.runs import Change
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import BudgetHeld, BudgetReached, CostUnknown
from promptstack.services.execution.content_calls import Call
from promptstack.services.runs.shards.batch import CommitResult, Leaving
from promptstack.services.runs.shards.call_pool import CallPermitted
from promptstack.services.runs.shards.queue import CallQueue
from promptstack.services.runs.shards.workload import Workload

POLL_SECONDS = 0.05
HELD_POLL_SECONDS = 0.25


class RunBudget:
    """The money of one run, as one shard sees it."""

    def __init__(
        self,
        claim: Claim,
        run: Run,
        workload: Workload,
        patience_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._claim = claim
        self._run = run
        self._workload = workload
        self._patience_seconds = patience_seconds
        self._clock = clock
        self._held_since: float | None = None
        """Since when other shards' calls hold all that is left of the limit."""

        self._is_capped = False
        """Whether a spend cap held in the last transaction."""

    def prepare(self, permitted: Iterable[CallPermitted]) -> None:
        """Compute the most that calls can cost; not in a transaction, as it reads whole texts."""
        if self._run.max_cost_usd is not None or self._is_capped:
            for one in permitted:
                self._workload.upper_bound(one.call)

    def admit(
        self,
        unit: UnitOfWork,
        leaving: list[Leaving],
        settled: Change,
        result: CommitResult,
        *,
        is_capped: bool,
    ) -> list[Leaving]:
        """Find the calls that the limit pays for, under the run's lock; `result` has the others.

        Where spend caps hold, the run is locked all the same, as it is locked before budgets.
        """
        self._is_capped = is_capped
        if self._run.max_cost_usd is None:
            if is_capped:
                unit.runs.lock(self._run.id)
            return leaving
        run = unit.runs.lock(self._run.id)
        if run is None or not unit.runs.is_on(self._run):
            # It has ended, and may have been started anew with another limit.
            result.is_run_over = True
            result.unsent += [one.permitted for one in leaving]
            return []
        left = Decimal(0)
        if run.max_cost_usd is not None:
            # `settled` is added to the run's row at the end of this transaction.
            spent = run.cost_usd + run.reserved_usd + settled.cost_usd + settled.reserved_usd
            left = run.max_cost_usd - spent
        # If an earlier commit of the same calls was lost, they are part of what is reserved.
        begun = unit.attempts.begun(self._claim, [one.permitted.number for one in leaving])
        admitted = []
        for one in leaving:
            cost, is_begun = self._workload.most_usd(one.call), one.permitted.number in begun
            if cost is None or not (is_begun or cost <= left):
                result.over_budget.append(one.call)
                result.unsent.append(one.permitted)
                continue
            left -= Decimal(0) if is_begun else cost
            admitted.append(one._replace(reserved_usd=cost))
        if result.over_budget:
            self._release(unit, result.over_budget)
            # Under the run's lock: no other shard's call can end between the sums and this.
            result.is_money_held = unit.attempts.are_under_way(self._run.id, but=self._claim.job_id)
        return admitted

    def refuse(
        self,
        unit: UnitOfWork,
        refused: Sequence[tuple[Leaving, PromptStackError]],
        result: CommitResult,
    ) -> None:
        """Note calls that a spend cap does not pay for; `result` has them."""
        if not refused:
            return
        calls = [one.call for one, _ in refused]
        self._release(unit, calls)
        result.over_budget += calls
        result.unsent += [one.permitted for one, _ in refused]
        reached = [error for _, error in refused if not error.transient]
        result.refusal = next(iter(reached), refused[0][1])
        result.is_money_held |= not reached

    def _release(self, unit: UnitOfWork, calls: Iterable[Call]) -> None:
        unit.reservations.release(self._claim, [hash_ for call in calls for hash_ in call.hashes])

    def wait(self, result: CommitResult, queue: CallQueue, *, has_under_way: bool) -> None:
        """Let calls wait until those under way show what they really cost.

        Raises `BudgetReached`, or the error of the spend cap that is reached, if none is under way,
        so that no money will be left.
        """
        over, now = result.over_budget, self._clock()
        if not over or has_under_way or not result.is_money_held:
            self._held_since = None
        if not over:
            return
        if has_under_way:
            queue.hold(POLL_SECONDS)
        elif result.is_money_held:
            self._held_since = self._held_since or now
            is_long = now - self._held_since > self._patience_seconds
            # Longer than the worker's patience sends the shard back to the job queue.
            queue.hold(
                2 * self._patience_seconds if is_long else HELD_POLL_SECONDS,
                BudgetHeld(
                    "Calls under way may cost all that is left of the limit; the shard waits.",
                    retry_after=1.0,
                ),
            )
        elif result.refusal is not None and (_are_single(over) or _is_unknown(result.refusal)):
            raise result.refusal
        elif _are_single(over):
            limit = f"{(self._run.max_cost_usd or Decimal(0)).normalize():f}"
            raise BudgetReached(
                f"The run was stopped before it could cost more than ${limit}; "
                "raise the limit with `promptstack runs retry --max-cost`."
            )
        else:
            # The money may be enough for smaller calls.
            over = [half for call in over for half in call.halves()]
        queue.put_back(over)


def _are_single(calls: Iterable[Call]) -> bool:
    return all(len(call.contents) == 1 for call in calls)


def _is_unknown(error: PromptStackError) -> bool:
    """Whether a smaller call would be refused, too."""
    return isinstance(error, CostUnknown)
