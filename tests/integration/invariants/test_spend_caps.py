"""A spend cap is never passed. What it stopped goes on once it is raised; nothing is paid twice."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

import pytest

from promptstack.repositories.budgets.spending import Owner, Window
from promptstack.repositories.jobs.records import Begun
from promptstack.repositories.models import AttemptState, Billing, JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.budgets.admission import begin_calls
from promptstack.services.budgets.service import OF_DEPLOYMENT, Scope, Subject
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.llm.errors import Overloaded, ProviderTimeout
from promptstack.tasks.worker_services import WorkerServices
from tests.budgets import (
    Clock,
    begun_job,
    call,
    charge,
    check_sums,
    owners,
    spent,
)
from tests.fakes import FakeProvider, Gate, lost_commits, raises
from tests.jobs import attempts, embed, generate, make_due, run, state
from tests.processes import wait_until
from tests.runs import one, work

PROMPT = "Hello."
MOST = 64 + len(PROMPT) + 10
"""Dollars that a generation can cost at most, with ten tokens of answer."""
COSTS = 5
"""What it costs."""


@pytest.fixture(autouse=True)
def _priced(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    charge(stack, monkeypatch)


def key_of(stack: WorkerServices, email: str = "ada@example.org") -> Owner:
    stack.keys.create(email, "Test")
    with stack.ledger.transaction() as unit:
        key = unit.api_keys.get_all()[-1]
        return Owner(key.user_id, key.id)


def cap(stack: WorkerServices, owner: Owner, **caps: float | None) -> None:
    """Set caps of a key."""
    stack.budgets.set(Subject(Scope.KEY, owner.api_key_id), caps)


def ask(stack: WorkerServices, owner: Owner, prompt: str = PROMPT, **how: Any) -> UUID:
    mine: dict[str, Any] = {"user_id": owner.user_id, "api_key_id": owner.api_key_id}
    return generate(stack, prompt, **{"max_tokens": 10, **mine, **how}).id


def test_a_call_that_could_pass_a_cap_fails_its_job_which_goes_on_when_it_is_raised(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, day=MOST + COSTS - 0.5)
    first, second = (stack.jobs.get(ask(stack, owner)) for _ in range(2))
    assert run(stack, first).state is JobState.SUCCEEDED
    assert run(stack, second).state is JobState.FAILED
    failed = stack.jobs.get(second.id)
    assert failed.error_code == "KEY_BUDGET_REACHED"
    assert failed.error is not None
    assert f"of ${MOST + COSTS - 0.5:.2f} a day, $5.00 is used" in failed.error
    assert f"this call can cost ${MOST}.00" in failed.error
    assert "It opens again at " in failed.error
    assert (provider.calls, len(attempts(stack, second))) == (1, 0)
    stack.jobs.retry(second.id)
    assert run(stack, second).state is JobState.FAILED
    cap(stack, owner, day=MOST + COSTS)
    stack.jobs.retry(second.id)
    assert run(stack, second).state is JobState.SUCCEEDED
    assert provider.calls == 2
    assert spent(stack, owner.api_key_id)["day"] == 2 * COSTS
    check_sums(stack.ledger)


@pytest.mark.parametrize(
    ("scope", "code"),
    [
        (Scope.KEY, "KEY_BUDGET_REACHED"),
        (Scope.USER, "USER_BUDGET_REACHED"),
        (Scope.DEPLOYMENT, "DEPLOYMENT_BUDGET_REACHED"),
    ],
)
def test_the_error_names_the_cap_that_is_reached(
    stack: WorkerServices, provider: FakeProvider, scope: Scope, code: str
) -> None:
    owner = key_of(stack)
    ids = {Scope.KEY: owner.api_key_id, Scope.USER: owner.user_id, Scope.DEPLOYMENT: None}
    for other in Scope:
        stack.budgets.set(Subject(other, ids[other]), {"total": 1 if other is scope else 1_000})
    job = stack.jobs.get(ask(stack, owner))
    assert run(stack, job).state is JobState.FAILED
    failed = stack.jobs.get(job.id)
    assert failed.error_code == code
    assert "when it is raised" in (failed.error or "")
    # All or none: the budgets that would have paid have counted nothing.
    assert [cap.used_usd for one in stack.budgets.get_all() for cap in one.caps] == [0] * 9
    assert provider.calls == 0


def test_others_pay_nothing_for_a_cap_that_is_not_theirs(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, total=0)
    other = key_of(stack)
    assert other.user_id == owner.user_id
    for job_id in (ask(stack, other), ask(stack, Owner(owner.user_id, None))):
        assert run(stack, stack.jobs.get(job_id)).state is JobState.SUCCEEDED
    assert run(stack, generate(stack, max_tokens=10)).state is JobState.SUCCEEDED
    assert run(stack, stack.jobs.get(ask(stack, owner))).state is JobState.FAILED


def test_a_call_waits_for_what_calls_under_way_really_cost(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, month=MOST + COSTS)
    first, second = (stack.jobs.get(ask(stack, owner)) for _ in range(2))
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = lambda: gate() if provider.calls == 1 else None
        running = pool.submit(run, stack, first)
        gate.wait()
        waits = run(stack, second)
        assert (waits.state, waits.error.split(":")[0]) == (JobState.QUEUED, "BUDGET_HELD")
        gate.open()
        assert running.result(30).state is JobState.SUCCEEDED
    make_due(stack, second)
    assert run(stack, second).state is JobState.SUCCEEDED
    assert stack.jobs.get(second.id).failures == 0


@pytest.mark.parametrize(
    "how", [{"max_tokens": None}, {"options": {"top_k": 3}}, {"model": "unpriced"}]
)
def test_a_call_of_unknown_cost_does_not_leave_where_a_cap_holds(
    stack: WorkerServices,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
    how: dict[str, Any],
) -> None:
    monkeypatch.setattr(provider.service, "known_options", None)
    cost = stack.prices.cost
    monkeypatch.setattr(
        stack.prices,
        "cost",
        lambda name, model, **tokens: None if model == "unpriced" else cost(name, model, **tokens),
    )
    owner = key_of(stack)
    free = stack.jobs.get(ask(stack, owner, **how))
    assert run(stack, free).state is JobState.SUCCEEDED
    cap(stack, owner, day=1_000_000)
    job = stack.jobs.get(ask(stack, owner, **how))
    assert run(stack, job).state is JobState.FAILED
    failed = stack.jobs.get(job.id)
    assert failed.error_code == "COST_UNKNOWN"
    assert "max_tokens" in (failed.error or "")
    assert "MODELS_FILE" in (failed.error or "")
    assert provider.calls == 1


def test_what_is_free_passes_no_cap(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack.prices, "cost", lambda *_, **__: Decimal(0))
    owner = key_of(stack)
    cap(stack, owner, total=0)
    stack.heartbeat.beat()
    job = stack.jobs.enqueue_generation(
        "Free.", provider="demo", user_id=owner.user_id, api_key_id=owner.api_key_id
    )
    assert run(stack, job).state is JobState.SUCCEEDED


def test_a_refused_call_counts_nothing_and_one_that_may_be_billed_counts_the_most(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, day=10_000)
    provider.on_call = raises(Overloaded("busy"), ProviderTimeout("slow"))
    job = stack.jobs.get(ask(stack, owner))
    for counted in (0, MOST, MOST + COSTS):
        run(stack, job)
        assert spent(stack, owner.api_key_id)["day"] == counted
        make_due(stack, job)
    assert state(stack, job) is JobState.SUCCEEDED
    check_sums(stack.ledger)


def test_a_call_of_a_dead_worker_counts_the_most_it_can_have_cost(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, total=1.5 * MOST)
    claim = begun_job(stack.ledger, owner)
    with stack.ledger.transaction() as unit:
        begun = begin_calls(unit, [call(claim, 0, Decimal(MOST), Decimal(1))])[claim.job_id, 0]
    assert isinstance(begun, Begun)
    job = stack.jobs.get(ask(stack, owner))
    assert run(stack, job).error.startswith("BUDGET_HELD")
    with stack.ledger.transaction() as unit:
        unit.maintenance.free_lost(timeout=0.0)
    assert spent(stack, owner.api_key_id)["total"] == MOST
    make_due(stack, job)
    assert run(stack, job).error.startswith("KEY_BUDGET_REACHED")
    # Its answer comes after all.
    with stack.ledger.transaction() as unit:
        answered = {"billing": Billing.BILLED, "cost_usd": Decimal(COSTS)}
        unit.attempts.settle(begun.attempt_id, AttemptState.SUCCEEDED, **answered)
    assert spent(stack, owner.api_key_id)["total"] == COSTS
    stack.jobs.retry(job.id)
    assert run(stack, job).state is JobState.SUCCEEDED


def test_a_commit_of_which_nobody_heard_counts_once(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, day=MOST + 1)
    job = stack.jobs.get(ask(stack, owner))
    with lost_commits(stack):
        assert run(stack, job).state is JobState.SUCCEEDED
    assert spent(stack, owner.api_key_id)["day"] == COSTS
    check_sums(stack.ledger)


def test_a_document_stops_at_a_cap_and_pays_for_no_passage_twice(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    job = embed(
        stack, *"abcdefgh", user_id=owner.user_id, api_key_id=owner.api_key_id, max_retries=0
    )
    cap(stack, owner, total=95)
    assert run(stack, job).state is JobState.FAILED
    stopped = stack.jobs.get(job.id)
    assert stopped.error_code == "KEY_BUDGET_REACHED"
    assert 0 < stopped.current < stopped.total
    cap(stack, owner, total=100_000)
    stack.jobs.retry(job.id)
    assert run(stack, job).state is JobState.SUCCEEDED
    assert set(provider.asked.values()) == {1}
    check_sums(stack.ledger)


@pytest.mark.parametrize("max_cost", [None, 100_000])
def test_a_run_stops_at_a_cap_and_goes_on_when_it_is_raised(
    stack: WorkerServices, provider: FakeProvider, max_cost: int | None
) -> None:
    owner = key_of(stack)
    mine: dict[str, Any] = {"user_id": owner.user_id, "api_key_id": owner.api_key_id}
    mine["max_cost_usd"] = max_cost
    prompts = [f"Prompt {n:02}." for n in range(40)]
    started = stack.runs.generate(prompts, provider="fake", max_tokens=10, **mine)
    cap(stack, owner, day=3 * MOST)
    stopped = work(stack, started.id)
    assert (stopped.state, stopped.error_code) == (RunState.FAILED, "KEY_BUDGET_REACHED")
    assert "The API key's spend cap is reached" in (stopped.error or "")
    assert 0 < stopped.succeeded < 40
    assert stopped.cost_usd == spent(stack, owner.api_key_id)["day"] <= 3 * MOST
    # Nothing more fits, even alone.
    assert stopped.cost_usd > 2 * MOST - 10
    cap(stack, owner, day=100_000)
    stack.runs.retry(started.id)
    done = work(stack, started.id)
    assert (done.state, done.succeeded) == (RunState.COMPLETED, 40)
    assert set(provider.asked.values()) == {1}
    assert one(stack, "SELECT reserved_usd FROM runs") == (0,)
    check_sums(stack.ledger)


def test_a_run_of_texts_spends_what_smaller_calls_can(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    texts = [f"text {n:03}" for n in range(64)]  # of 8 dollars at most, and one dollar really
    started = stack.runs.embed(
        texts, provider="fake", user_id=owner.user_id, api_key_id=owner.api_key_id
    )
    cap(stack, owner, month=40)
    stopped = work(stack, started.id)
    assert (stopped.state, stopped.error_code) == (RunState.FAILED, "KEY_BUDGET_REACHED")
    assert 40 - 8 < spent(stack, owner.api_key_id)["month"] <= 40
    cap(stack, owner, month=None)
    stack.runs.retry(started.id)
    assert work(stack, started.id).state is RunState.COMPLETED
    assert set(provider.asked.values()) == {1}


def test_a_run_whose_cost_nobody_knows_ends_at_once(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    cap(stack, owner, total=1_000)
    started = stack.runs.generate(
        ["a", "b"], provider="fake", user_id=owner.user_id, api_key_id=owner.api_key_id
    )
    stopped = work(stack, started.id)
    assert (stopped.state, stopped.error_code) == (RunState.FAILED, "COST_UNKNOWN")
    assert provider.calls == 0


def test_caps_of_a_day_and_a_month_open_by_the_calendar_in_utc(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    clock = Clock(stack.ledger)
    clock.set(datetime(2027, 2, 27, 23, 59, 50, tzinfo=UTC))
    owner = key_of(stack)
    cap(stack, owner, day=MOST, month=MOST + 2 * COSTS)
    days = []

    def ask_for(outcome: str) -> None:
        job = stack.jobs.get(ask(stack, owner))
        run(stack, job)
        failed = stack.jobs.get(job.id)
        opens = (failed.error or "").partition("opens again at ")[2][:10]
        days.append((failed.error_code or failed.state, opens))
        assert days[-1] == (failed.error_code or failed.state, outcome)

    ask_for("")
    ask_for("2027-02-28")
    clock.set(datetime(2027, 2, 28, 0, 0, 5, tzinfo=UTC))
    ask_for("")
    ask_for("2027-03-01")
    clock.set(datetime(2027, 3, 1, 9, tzinfo=UTC))
    ask_for("")
    for day in range(2, 4):
        clock.set(datetime(2027, 3, day, 9, tzinfo=UTC))
        ask_for("")
    clock.set(datetime(2027, 3, 4, 9, tzinfo=UTC))
    ask_for("2027-04-01")
    check_sums(stack.ledger)


def test_a_call_counts_on_the_day_on_which_it_began(stack: WorkerServices) -> None:
    clock = Clock(stack.ledger)
    clock.set(datetime(2027, 2, 28, 23, 59, tzinfo=UTC))
    owner = owners(stack)["ada's key 0"]
    cap(stack, owner, day=100)
    claim = begun_job(stack.ledger, owner)
    with stack.ledger.transaction() as unit:
        first = begin_calls(unit, [call(claim, 0, Decimal(60), None)])[claim.job_id, 0]
    clock.set(datetime(2027, 3, 1, 0, 1, tzinfo=UTC))
    with stack.ledger.transaction() as unit:
        second = begin_calls(unit, [call(claim, 1, Decimal(70), None)])[claim.job_id, 1]
    assert isinstance(first, Begun)
    assert isinstance(second, Begun)
    for begun, cost in ((first, 11), (second, 22)):
        with stack.ledger.transaction() as unit:
            paid = {"billing": Billing.BILLED, "cost_usd": Decimal(cost)}
            unit.attempts.settle(begun.attempt_id, AttemptState.SUCCEEDED, **paid)
    assert spent(stack, owner.api_key_id) == {"day": 22, "month": 22, "total": 33}
    check_sums(stack.ledger)


def test_the_first_cap_counts_what_was_spent_before_and_is_under_way(
    stack: WorkerServices, provider: FakeProvider
) -> None:
    owner = key_of(stack)
    for _ in range(3):
        assert run(stack, stack.jobs.get(ask(stack, owner))).state is JobState.SUCCEEDED
    with ThreadPoolExecutor(1) as pool, Gate(stack) as gate:
        provider.on_call = gate
        running = pool.submit(run, stack, stack.jobs.get(ask(stack, owner)))
        gate.wait()
        (expected,) = one(stack, "SELECT expected_cost_usd FROM attempts WHERE state = 'started'")
        cap(stack, owner, day=1, total=1)
        stack.budgets.set(Subject(Scope.USER, owner.user_id), {"month": 1})
        assert spent(stack, owner.api_key_id)["total"] == 3 * COSTS + expected
        assert spent(stack, owner.user_id)["month"] == 3 * COSTS + expected
        gate.open()
        assert running.result(30).state is JobState.SUCCEEDED
    assert spent(stack, owner.api_key_id)["day"] == 4 * COSTS
    assert spent(stack, owner.user_id)["day"] == 4 * COSTS
    check_sums(stack.ledger)


def test_a_rotated_key_keeps_its_budget(stack: WorkerServices, provider: FakeProvider) -> None:
    owner = key_of(stack)
    cap(stack, owner, total=MOST)
    assert run(stack, stack.jobs.get(ask(stack, owner))).state is JobState.SUCCEEDED
    assert owner.api_key_id is not None
    caller = stack.keys.authenticate(stack.keys.rotate(owner.api_key_id).secret)
    assert caller.key_id == owner.api_key_id
    again = stack.jobs.get(ask(stack, Owner(caller.user_id, caller.key_id)))
    assert run(stack, again).error.startswith("KEY_BUDGET_REACHED")


def test_wrong_caps_are_refused(stack: WorkerServices) -> None:
    owner = key_of(stack)
    mine = Subject(Scope.KEY, owner.api_key_id)
    for wrong in ({}, {"day": -1}, {"day": "NaN"}, {"month": 1e30}, {"year": 1}, {"day": "much"}):
        with pytest.raises(InvalidInput):
            stack.budgets.set(mine, wrong)
    with pytest.raises(NotFound):
        stack.budgets.set(Subject(Scope.KEY, UUID(int=5)), {"day": 1})
    with pytest.raises(NotFound):
        stack.budgets.set(Subject(Scope.USER, owner.api_key_id), {"day": 1})
    assert stack.budgets.set(mine, {"day": None}) is None
    assert stack.budgets.get_all() == []


def test_calls_at_once_and_caps_that_change_meanwhile_neither_pass_nor_lose_a_cent(
    stack: WorkerServices,
) -> None:
    """Threads record and settle calls of all owners, in one transaction, in any order."""
    known = owners(stack)
    names = list(known)
    stack.budgets.set(OF_DEPLOYMENT, {"total": 40})
    cap(stack, known["ada's key 0"], day=10)
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = one(stack, deadlocks)
    stop = threading.Event()

    def work_on(seed: int) -> None:
        random = Random(seed)
        under_way: list[int] = []
        for _ in range(60):
            steps = [
                call(
                    begun_job(stack.ledger, known[random.choice(names)]),
                    0,
                    Decimal(random.randint(1, 60)) / 100,
                    Decimal("0.1"),
                )
                for _ in range(random.randint(1, 4))
            ]
            with stack.ledger.transaction() as unit:
                paid = [
                    {
                        "attempt_id": attempt_id,
                        "state": AttemptState.SUCCEEDED,
                        "billing": Billing.BILLED,
                        "cost_usd": Decimal("0.01"),
                    }
                    for attempt_id in sorted(under_way)
                ]
                unit.attempts.settle_many(paid)
                begun = begin_calls(unit, steps)
            under_way = [one.attempt_id for one in begun.values() if isinstance(one, Begun)]

    def change_caps() -> None:
        random = Random(0)
        subjects = [
            Subject(Scope.USER, known["ada"].user_id),
            Subject(Scope.KEY, known["ada's key 1"].api_key_id),
            Subject(Scope.KEY, known["eve's key 0"].api_key_id),
        ]
        while not stop.is_set():
            amount = random.choice([None, 1, 5, 50])
            stack.budgets.set(random.choice(subjects), {random.choice(list(Window)): amount})

    def never_passed() -> bool:
        held = one(
            stack,
            "SELECT bool_and(total_usd <= total_cap_usd) FROM budgets "
            "WHERE user_id IS NULL AND api_key_id IS NULL",
        )
        assert held == (True,)
        return stop.is_set()

    with ThreadPoolExecutor(6) as pool:
        changing = pool.submit(change_caps)
        watching = pool.submit(wait_until, never_passed, "the end", 120)
        working = [pool.submit(work_on, seed) for seed in range(4)]
        try:
            for one_ in working:
                one_.result(120)
        finally:
            stop.set()
        changing.result(60)
        watching.result(60)
    check_sums(stack.ledger)
    assert one(stack, deadlocks) == before
