"""The sums of budgets, by random sequences of everything that changes them.

Calls are recorded, settled and lost, caps are set and taken away, days and months pass. A small
model says which call may leave, and what each budget must have counted.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

from hypothesis import HealthCheck
from hypothesis import settings as effort
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import text

from promptstack.repositories.budget_models import DEPLOYMENT
from promptstack.repositories.budgets.spending import Owner, Window
from promptstack.repositories.jobs.records import BeginStep, Begun
from promptstack.repositories.models import AttemptState, Billing
from promptstack.services.budgets.admission import begin_calls
from promptstack.services.budgets.service import OF_DEPLOYMENT, Scope, Subject
from promptstack.services.errors import (
    BudgetReached,
    CostUnknown,
    DeploymentBudgetReached,
    KeyBudgetReached,
    SpendingHeld,
    UserBudgetReached,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.budgets import Clock, begun_job, call, check_sums, owners

NAMES = ["nobody", "ada", "ada's key 0", "ada's key 1", "eve's key 0"]
ERRORS = {
    Scope.KEY: KeyBudgetReached,
    Scope.USER: UserBudgetReached,
    Scope.DEPLOYMENT: DeploymentBudgetReached,
}
cents = st.integers(1, 60).map(lambda number: Decimal(number) / 100)
recent = st.sampled_from([0, 0, 1, 2, 5])


@dataclass
class Call:
    """What a call must count."""

    owner: Owner
    step: BeginStep
    attempt_id: int
    day: date
    held: Decimal
    cost: Decimal | None = None
    is_under_way: bool = True
    is_known: bool = False
    """Whether its bill is: then it never changes."""

    @property
    def usd(self) -> Decimal:
        return self.held if self.cost is None else self.cost


class BudgetSums(RuleBasedStateMachine):
    """Acts on the ledger and on the model alike."""

    def __init__(self, stack: WorkerServices, clock: Clock) -> None:
        super().__init__()
        self.stack = stack
        self.clock = clock
        self.calls: list[Call] = []
        self.caps: dict[Subject, dict[Window, Decimal]] = {}
        self.now = datetime(2027, 1, 30, 12, tzinfo=UTC)
        self.keys_with_budgets: set[UUID | None] = set()

    @initialize()
    def begin_anew(self) -> None:
        with self.stack.ledger.transaction() as unit:
            for table in ("budgets", "attempts", "jobs", "users"):
                unit.session.execute(text(f"DELETE FROM {table}"))
        self.owners = owners(self.stack)
        self.subjects = [
            OF_DEPLOYMENT,
            Subject(Scope.USER, self.owners["ada"].user_id),
            Subject(Scope.KEY, self.owners["ada's key 0"].api_key_id),
            Subject(Scope.KEY, self.owners["eve's key 0"].api_key_id),
        ]
        self.clock.set(self.now)

    # What callers and workers do

    @rule(
        asked=st.lists(st.tuples(st.sampled_from(NAMES), st.none() | cents), min_size=1, max_size=4)
    )
    def leave(self, asked: list[tuple[str, Decimal | None]]) -> None:
        """Calls of several jobs are about to leave, in one transaction."""
        steps = []
        for name, most in asked:
            claim = begun_job(self.stack.ledger, self.owners[name])
            steps.append(call(claim, 0, most, most and most / 2))
        with self.stack.ledger.transaction() as unit:
            results = begin_calls(unit, steps)
        left = [step for step in steps if isinstance(results[step.key], Begun)]
        with self.stack.ledger.transaction() as unit:
            # As where nobody heard of the commit: it counts once.
            again = begin_calls(unit, left)
        assert {key: vars(one) for key, one in again.items()} == {
            step.key: {**vars(results[step.key]), "is_new": False} for step in left
        }
        refused: list[tuple[object, Owner, Decimal]] = []
        result: object
        for (name, most), step in zip(asked, steps, strict=True):
            owner, result = self.owners[name], results[step.key]
            counted = self.budgets_of(owner)
            if counted and most is None:
                assert type(result) is CostUnknown
            elif counted and self.over(owner, most or Decimal(0)):
                refused.append((result, owner, most or Decimal(0)))
            else:
                assert isinstance(result, Begun)
                held = (
                    (most or Decimal(0))
                    if counted or self.goes_on(owner)
                    else (most or Decimal(0)) / 2
                )
                self.calls.append(Call(owner, step, result.attempt_id, self.now.date(), held))
        for result, owner, most in refused:
            self.check_refusal(result, owner, most)

    def check_refusal(self, result: object, owner: Owner, most: Decimal) -> None:
        under_way = [one for one in self.calls if one.is_under_way]
        for subject, window, excess in self.over(owner, most):
            if excess > self.sum_of(under_way, subject, window):
                assert type(result) is ERRORS[subject.scope]
                assert isinstance(result, BudgetReached)
                return
        assert type(result) is SpendingHeld

    @precondition(lambda self: self.calls)
    @rule(
        ago=recent,
        cost=st.none() | st.integers(0, 120).map(lambda number: Decimal(number) / 100),
        billing=st.sampled_from(Billing),
    )
    def settle(self, ago: int, cost: Decimal | None, billing: Billing) -> None:
        """A call is answered, late or twice, or nobody knows what became of it."""
        one = self.calls[-1 - ago % len(self.calls)]
        cost = {Billing.UNKNOWN: None, Billing.NOT_BILLED: Decimal(0)}.get(billing, cost)
        state = AttemptState.SUCCEEDED if billing is Billing.BILLED else AttemptState.FAILED
        with self.stack.ledger.transaction() as unit:
            unit.attempts.settle(one.attempt_id, state, billing=billing, cost_usd=cost)
        if not one.is_known:
            one.cost, one.is_under_way = cost, False
            one.is_known = billing is not Billing.UNKNOWN

    @precondition(lambda self: self.calls)
    @rule(ago=recent)
    def lose(self, ago: int) -> None:
        """A worker dies."""
        one = self.calls[-1 - ago % len(self.calls)]
        with self.stack.ledger.transaction() as unit:
            unit.maintenance.lose_calls([one.step.claim.worker_id])
        one.is_under_way = False

    # What people and the calendar do

    @rule(
        number=st.integers(0, 3),
        window=st.sampled_from(Window),
        cap=st.none() | st.integers(0, 200).map(lambda number: Decimal(number) / 100),
    )
    def set_cap(self, number: int, window: Window, cap: Decimal | None) -> None:
        subject = self.subjects[number]
        self.stack.budgets.set(subject, {window: cap})
        if cap is not None and subject.scope is Scope.KEY:
            self.keys_with_budgets.add(subject.id)
        caps = self.caps.setdefault(subject, {})
        if cap is None:
            caps.pop(window, None)
        else:
            caps[window] = cap
        if not caps:
            del self.caps[subject]

    @rule(days=st.sampled_from([1, 1, 2, 31]))
    def pass_days(self, days: int) -> None:
        self.now += timedelta(days=days)
        self.clock.set(self.now)

    # What must hold

    @invariant()
    def counts_each_call_once(self) -> None:
        check_sums(self.stack.ledger)
        shown = {(one.scope, one.id): one for one in self.stack.budgets.get_all()}
        assert shown.keys() == {(subject.scope, subject.id) for subject in self.caps}
        for subject, caps in self.caps.items():
            for cap in shown[subject.scope, subject.id].caps:
                assert cap.cap_usd == caps.get(cap.window)
                assert cap.used_usd == self.sum_of(self.calls, subject, cap.window)

    def goes_on(self, owner: Owner) -> bool:
        """Whether its key had a cap once: such a budget goes on counting."""
        return owner.api_key_id in self.keys_with_budgets

    def budgets_of(self, owner: Owner) -> list[Subject]:
        """The key's before the user's, and these before the deployment's."""
        found = [one for one in self.caps if (one.id or DEPLOYMENT) in owner.subjects]
        return sorted(found, key=lambda one: list(Scope).index(one.scope))

    def over(self, owner: Owner, most: Decimal) -> list[tuple[Subject, Window, Decimal]]:
        over = []
        for subject in self.budgets_of(owner):
            for window in Window:
                cap = self.caps[subject].get(window)
                excess = self.sum_of(self.calls, subject, window) + most - (cap or Decimal(0))
                if cap is not None and most and excess > 0:
                    over.append((subject, window, excess))
        return over

    def sum_of(self, calls: list[Call], subject: Subject, window: Window) -> Decimal:
        def is_within(day: date) -> bool:
            today = self.now.date()
            if window is Window.DAY:
                return day == today
            return window is Window.TOTAL or f"{day:%Y%m}" == f"{today:%Y%m}"

        mine = subject.id or DEPLOYMENT
        return sum(
            (one.usd for one in calls if mine in one.owner.subjects and is_within(one.day)),
            Decimal(0),
        )


def test_every_call_counts_once_whatever_becomes_of_it(stack: WorkerServices) -> None:
    clock = Clock(stack.ledger)

    class Here(BudgetSums):
        def __init__(self) -> None:
            super().__init__(stack, clock)

    run_state_machine_as_test(
        Here,
        settings=effort(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
