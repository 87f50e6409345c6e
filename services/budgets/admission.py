"""Whether budgets pay for calls that are about to leave; docs/access.md has the rules."""

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from decimal import ROUND_UP, Decimal
from typing import NamedTuple
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.budgets.spending import Owner, Spending, Window
from promptstack.repositories.jobs.records import BeginStep, Begun, CappedCall, NewCall
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import (
    BudgetReached,
    CostUnknown,
    DeploymentBudgetReached,
    KeyBudgetReached,
    SpendingHeld,
    UserBudgetReached,
)

Key = tuple[UUID, int]
"""A job, and the number of a call of its attempt."""
CENT, SMALLEST_SHOWN = Decimal("0.01"), Decimal("0.000001")


class Over(NamedTuple):
    """A cap that a call could pass."""

    spending: Spending
    window: Window
    cost: Decimal

    @property
    def excess(self) -> Decimal:
        """By how much, if every call costs the most that it can."""
        spent, cap = self.spending.spent[self.window], self.spending.caps[self.window]
        return spent + self.cost - cap


def begin_calls(
    unit: UnitOfWork, steps: Sequence[BeginStep]
) -> dict[Key, Begun | PromptStackError]:
    """Record calls that are about to leave, and have their budgets count the most they can cost.

    Returns for each the attempt, or why it must not leave. Calls of lost claims are left out.
    """
    begun: dict[Key, Begun | PromptStackError] = {**unit.attempts.begin(steps)}
    left = [step for step in steps if step.key not in begun]
    capped = unit.attempts.find_capped(left) if left else {}
    new: list[BeginStep] = []
    for step in left:
        call = capped.get(step.key)
        if call is not None and call.attempt_id is not None:
            begun[step.key] = Begun(call.attempt_id, is_new=False)
        elif call is not None:
            new.append(step)
    if new:
        begun |= _begin_within_caps(unit, new, capped)
    return begun


def begin_alone(unit: UnitOfWork, owner: Owner, call: NewCall, worker_id: UUID) -> int:
    """Record a call that belongs to no job and is about to leave. Returns the attempt's id.

    `worker_id` is the process that makes it. Raises why it must not leave.
    """
    cost = call.most_usd()
    over: list[Over] = []
    attempt_id = 0
    with unit.budgets.locked(owner.subjects) as found:
        budgets = _of(owner, found)
        if cost is None and any(one.caps for one in budgets):
            raise _unknown(call)
        most = cost or call.expected_cost_usd or Decimal(0)
        over = _passed(budgets, most)
        if not over:
            for spending in budgets:
                spending.add(most, spending.day)
            day = budgets[0].day if budgets else None
            attempt_id = unit.attempts.begin_alone(
                owner, call, worker_id, most if budgets else None, day
            )
    if over:
        spendings = {one.spending.subject: one.spending for one in over}
        raise _refusal(
            over, {key: unit.budgets.under_way(key, one.day) for key, one in spendings.items()}
        )
    return attempt_id


def _begin_within_caps(
    unit: UnitOfWork, steps: Sequence[BeginStep], capped: Mapping[Key, CappedCall]
) -> dict[Key, Begun | PromptStackError]:
    owners = {step.key: Owner(*_owner(capped[step.key])) for step in steps}
    # Before the lock: all calls of these budgets wait while it is held.
    costs = {step.key: step.call.most_usd() for step in steps}
    subjects = set[UUID]().union(*(owner.subjects for owner in owners.values()))
    refused: dict[Key, PromptStackError] = {}
    over: dict[Key, list[Over]] = {}
    with unit.budgets.locked(subjects) as found:
        admitted: list[tuple[BeginStep, Decimal]] = []
        for step in steps:
            budgets = _of(owners[step.key], found)
            cost = costs[step.key]
            if cost is None and any(one.caps for one in budgets):
                refused[step.key] = _unknown(step.call)
                continue
            cost = cost or step.call.expected_cost_usd or Decimal(0)
            passed = _passed(budgets, cost)
            if passed:
                over[step.key] = passed
                continue
            for spending in budgets:
                spending.add(cost, spending.day)
            admitted.append((step, cost))
        begun = _record(unit, admitted, owners, found)
    under_way = {
        spending.subject: unit.budgets.under_way(spending.subject, spending.day)
        for spending in {
            id(one.spending): one.spending for key in over for one in over[key]
        }.values()
    }
    refused |= {key: _refusal(passed, under_way) for key, passed in over.items()}
    return {**begun, **refused}


def _record(
    unit: UnitOfWork,
    admitted: Sequence[tuple[BeginStep, Decimal]],
    owners: Mapping[Key, Owner],
    found: Mapping[UUID, Spending],
) -> dict[Key, Begun]:
    if not admitted:
        return {}
    day = next((spending.day for spending in found.values()), date.min)
    begun = unit.attempts.begin_reserved(admitted, day)
    for step, cost in admitted:
        if not begun[step.key].is_new:
            # A commit of which nobody heard has counted it.
            for spending in _of(owners[step.key], found):
                spending.add(-cost, spending.day)
    return begun


def _owner(call: CappedCall) -> tuple[UUID | None, UUID | None]:
    return call.user_id, call.api_key_id


def _of(owner: Owner, found: Mapping[UUID, Spending]) -> list[Spending]:
    """The budgets of an owner: the key's, the user's and the deployment's."""
    return sorted(
        (found[subject] for subject in owner.subjects & found.keys()),
        key=lambda one: (one.api_key_id is None, one.user_id is None),
    )


def _passed(budgets: Sequence[Spending], cost: Decimal) -> list[Over]:
    """The caps that a call of this cost could pass. What costs nothing passes none."""
    over = [Over(one, window, cost) for one in budgets for window in Window if window in one.caps]
    return [one for one in over if cost and one.excess > 0]


def _unknown(call: NewCall) -> CostUnknown:
    return CostUnknown(
        f"A spend cap holds, and nobody knows the most that this call of {call.provider}/"
        f"{call.model} can cost. The model needs a price (set it in MODELS_FILE), and a generation "
        "needs max_tokens and no provider options that may raise it."
    )


def _refusal(
    passed: Sequence[Over], under_way: Mapping[UUID, Mapping[Window, Decimal]]
) -> PromptStackError:
    """The error of a call that could pass these caps.

    Where calls under way may leave enough over, it waits for what they really cost.
    """
    for one in passed:
        if one.excess > under_way[one.spending.subject][one.window]:
            return _reached(one)
    return SpendingHeld(
        f"Calls under way may cost all that is left of {_whose(passed[0].spending)[1]} spend cap; "
        "this one waits for what they really cost."
    )


def _reached(over: Over) -> BudgetReached:
    spending, window = over.spending, over.window
    kind, whose = _whose(spending)
    spent, cap = spending.spent[window], spending.caps[window]
    if kind is DeploymentBudgetReached:
        # What all spend together is for administrators.
        return kind(f"{whose} spend cap is reached. {_opens(window, spending.day)}")
    period = {Window.DAY: " a day", Window.MONTH: " a month", Window.TOTAL: ""}[window]
    return kind(
        f"{whose} spend cap is reached: of {dollars(cap)}{period}, {dollars(spent)} is used, and "
        f"this call can cost {dollars(over.cost)}. {_opens(window, spending.day)}"
    )


def _whose(spending: Spending) -> tuple[type[BudgetReached], str]:
    if spending.api_key_id is not None:
        return KeyBudgetReached, "The API key's"
    if spending.user_id is not None:
        return UserBudgetReached, "The user's"
    return DeploymentBudgetReached, "The deployment's"


def opens_at(window: Window, day: date) -> date | None:
    """The day on which a cap opens again that is used up on `day`; None if only by raising it."""
    if window is Window.TOTAL:
        return None
    if window is Window.DAY:
        return day + timedelta(days=1)
    return (day.replace(day=1) + timedelta(days=32)).replace(day=1)


def _opens(window: Window, day: date) -> str:
    opens = opens_at(window, day)
    if opens is None:
        return "It opens when it is raised (`promptstack budgets set`)."
    return f"It opens again at {opens} 00:00 UTC, or when it is raised (`promptstack budgets set`)."


def dollars(usd: Decimal) -> str:
    """An amount as people read it: cents, and up to six digits where these are not zero."""
    shown = usd.quantize(SMALLEST_SHOWN, ROUND_UP).normalize()
    return f"${shown:f}" if -shown.as_tuple().exponent > 2 else f"${shown.quantize(CENT):f}"  # type: ignore[operator]
