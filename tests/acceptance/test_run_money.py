"""The money of runs, by two books: the ledger's, and the simulator's of what it has billed."""

from collections.abc import Callable
from decimal import Decimal
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import text

from promptstack.repositories.models import AttemptState
from promptstack.repositories.run_models import RunState
from promptstack.services.execution.failure_policy import MAX_WASTE_FACTOR
from promptstack.services.runs.shards.slots import RunSlots
from promptstack.services.runs.views import RunView
from promptstack.simulator.process import SimulatorProcess
from promptstack.simulator.requests import UNFIT_MARK
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until
from tests.runs import ended, failures, has_done, in_ledger, prompts

GENERATES, EMBEDS = "gpt-5-mini", "text-embedding-3-small"
CALLS = "SELECT count(*) FROM attempts"
UNSETTLED = f"{CALLS} WHERE billing = 'unknown'"
PATIENT = {"WORKER_LOST_SECONDS": "60"}
"""On a busy machine a worker may be silent for long and live: nobody dies here."""
UNDER_WAY = f"{CALLS} WHERE state = 'started'"


def billed_usd(stack: WorkerServices, simulator: SimulatorProcess, model: str) -> Decimal:
    """What the provider would put on the bill."""
    let_in = simulator.stats()["admitted"]
    tokens = {name: let_in[name] for name in ("input_tokens", "output_tokens")} if let_in else {}
    cost = stack.prices.cost("openai", model, **{"input_tokens": 0, "output_tokens": 0, **tokens})
    assert cost is not None
    return cost


def check_books(stack: WorkerServices, run: RunView) -> None:
    """The sums of a run are those of its attempts: in its row, and in the report of usage."""
    with stack.ledger.transaction() as unit:
        known = unit.session.execute(
            text(
                "SELECT count(*) FILTER (WHERE attempts.state IN ('succeeded', 'failed')), "
                "coalesce(sum(input_tokens + output_tokens), 0), coalesce(sum(cost_usd), 0) "
                "FROM attempts JOIN jobs ON jobs.id = job_id WHERE run_id = :run"
            ),
            {"run": run.id},
        ).one()
    assert (run.calls, run.tokens, run.cost_usd) == tuple(known)


@pytest.fixture(params=["generation", "embedding"])
def costly(request: pytest.FixtureRequest, runs: WorkerServices) -> "Costly":
    return Costly(runs, request.param)


class Costly:
    """A run of many shards, of which the limit pays for some calls alone."""

    def __init__(self, stack: WorkerServices, kind: str) -> None:
        self._stack = stack
        self._is_generation = kind == "generation"
        self.model = GENERATES if self._is_generation else EMBEDS
        # A call for texts has 2,048 of them, as a shard does here.
        self.items = 1_200 if self._is_generation else 6_144
        self.limits = ["0.006", "0.012"] if self._is_generation else ["0.0001"]
        self.most = Decimal("0.00006" if self._is_generation else "0.000001")
        """More than any one item can cost."""

    def start(self) -> RunView:
        if self._is_generation:
            return self._stack.runs.generate(
                [f"Prompt number {n:05}" for n in range(self.items)],
                max_tokens=16,
                in_flight=4,
                max_cost_usd=Decimal(self.limits[0]),
            )
        texts = [f"text {n:05}" for n in range(self.items)]
        return self._stack.runs.embed(texts, in_flight=1, max_cost_usd=Decimal(self.limits[0]))


def test_workers_together_spend_all_of_the_limit_and_no_more(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    costly: Costly,
) -> None:
    for _ in range(3):
        start_worker(**PATIENT)
    simulator.set_latency(0.1, spread=0.9)
    run = costly.start()
    for limit, next_ in pairwise([*map(Decimal, costly.limits), Decimal(1)]):
        run = ended(runs, run)
        wait_until(lambda: in_ledger(runs, UNDER_WAY) == 0, "the end of all calls")
        assert (run.state, run.error_code) == (RunState.FAILED, "BUDGET_REACHED")
        assert "runs retry --max-cost" in (run.error or "")
        assert 0 < run.succeeded < costly.items
        assert run.cost_usd == billed_usd(runs, simulator, costly.model)
        # No shard gives up while calls of others may leave something over.
        assert limit - costly.most < run.cost_usd <= limit
        run = runs.runs.retry(run.id, max_cost_usd=next_)
    # Not until the run's end: to build the index takes long, and is no matter of money.
    wait_until(lambda: has_done(runs, run, costly.items), "all items")
    run = runs.runs.get(run.id)
    assert (run.error_code, run.succeeded, run.failed) == (None, costly.items, 0)
    # Also what was under way when the limit was reached was kept, and not paid for again.
    assert simulator.ledger(times=2) == {}
    assert in_ledger(runs, UNSETTLED) == 0
    assert in_ledger(runs, "SELECT reserved_usd FROM runs") == 0
    check_books(runs, run)


def test_a_wrong_key_ends_a_run_soon_and_the_right_one_lets_it_go_on(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    in_flight = 4
    for _ in range(2):
        start_worker(**PATIENT, WORKER_SHARDS="2")
    simulator.set_fault_rates({"rate": 1, "kind": "status", "status": 401})
    run = ended(runs, runs.runs.generate(prompts(800), max_tokens=16, in_flight=in_flight))
    assert (run.state, run.error_code) == (RunState.FAILED, "PROVIDER_AUTHENTICATION")
    assert "check OPENAI_API_KEY" in (run.error or "")
    assert (run.succeeded, run.failed, run.cost_usd) == (0, 0, Decimal(0))
    simulator.wait_until_idle()
    wait_until(lambda: in_ledger(runs, UNDER_WAY) == 0, "the end of all calls")
    assert simulator.stats()["billed"] == 0
    # Each shard that had begun hears it once, and none tries again.
    begun = in_ledger(runs, "SELECT count(*) FROM jobs WHERE kind = 'shard' AND attempt > 0")
    assert simulator.stats()["requests"] <= begun * RunSlots(in_flight).total
    assert in_ledger(runs, "SELECT max(attempt) FROM jobs WHERE kind = 'shard'") == 1
    simulator.set_fault_rates()
    done = ended(runs, runs.runs.retry(run.id))
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 800, 0)
    assert simulator.stats()["billed"] == 800
    assert simulator.ledger(times=2) == {}


def test_a_cancel_keeps_all_answers_and_starts_no_call(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    for _ in range(2):
        start_worker(**PATIENT)
    simulator.set_latency(0.1, spread=0.9)
    run = runs.runs.generate(prompts(600), max_tokens=16, in_flight=8, max_cost_usd=Decimal(1))
    wait_until(lambda: has_done(runs, run, 60), "the first answers")
    runs.runs.cancel(run.id)
    recorded = in_ledger(runs, CALLS)
    wait_until(lambda: in_ledger(runs, UNDER_WAY) == 0, "the end of all calls")
    simulator.wait_until_idle()
    stopped = runs.runs.get(run.id)
    assert (stopped.state, in_ledger(runs, CALLS)) == (RunState.CANCELLED, recorded)
    # What was under way is kept, too: it was paid for.
    kept = in_ledger(runs, "SELECT count(*) FROM answers")
    assert simulator.stats()["billed"] == stopped.succeeded == kept
    assert in_ledger(runs, UNSETTLED) == 0
    assert in_ledger(runs, "SELECT reserved_usd FROM runs") == 0
    check_books(runs, stopped)
    simulator.reset()
    done = ended(runs, runs.runs.retry(run.id))
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 600, 0)
    assert simulator.stats()["billed"] == 600 - kept
    assert simulator.ledger(times=2) == {}
    check_books(runs, done)


def test_answers_that_break_the_schema_are_errors_that_were_paid_for(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker(**PATIENT)
    schema: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}}
    items = [
        {"id": f"id-{n}", "prompt": f"{UNFIT_MARK if n % 7 == 3 else ''} Where is {n}?"}
        for n in range(200)
    ]
    unfit = {f"id-{n}" for n in range(200) if n % 7 == 3}
    # The same question again is neither paid for again nor answered better.
    items.append({"id": "again", "prompt": f"{UNFIT_MARK} Where is 3?"})
    run = ended(runs, runs.runs.generate(items, max_tokens=50, json_schema=schema))
    assert (run.state, run.succeeded) == (RunState.COMPLETED, 200 - len(unfit))
    assert failures(runs, run) == dict.fromkeys(unfit | {"again"}, "ANSWER_MISMATCH")
    assert {one.detail for one in runs.run_results.failed(run.id)} == {"null"}
    produced = {one.custom_id for one in runs.run_results.produced(run.id)}
    assert produced == {f"id-{n}" for n in range(200)} - unfit
    assert simulator.stats()["billed"] == run.calls == 200
    assert run.cost_usd == billed_usd(runs, simulator, GENERATES)
    assert in_ledger(runs, f"{CALLS} WHERE state = 'failed' AND cost_usd > 0") == len(unfit)
    check_books(runs, run)


def test_transient_faults_cost_attempts_but_no_item_and_no_second_payment(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker(**PATIENT, PROVIDER_TIMEOUT_SECONDS="5")
    faults: list[dict[str, Any]] = [
        {"kind": "status", "status": 429, "retry_after": 1},
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 429, "retry_after_ms": 100},
        {"kind": "reset"},
        {"kind": "status", "status": 503},
        {"kind": "hang"},
        {"kind": "reset"},
        {"kind": "billed_timeout", "seconds": 60},
    ]
    simulator.control(*[one for fault in faults for one in ({"kind": "none"}, fault)])
    run = ended(runs, runs.runs.generate(prompts(120), max_tokens=16, in_flight=6))
    assert (run.state, run.succeeded, run.failed) == (RunState.COMPLETED, 120, 0)
    with runs.ledger.transaction() as unit:
        met: dict[str, int] = dict(
            unit.session.execute(
                text("SELECT coalesce(error_code, ''), count(*) FROM attempts GROUP BY 1")
            ).all()
        )
    assert met == {
        "": 120,
        "RATE_LIMITED": 2,
        "PROVIDER_BROKE": 1,
        "PROVIDER_OVERLOADED": 1,
        "PROVIDER_UNREACHABLE": 2,
        "PROVIDER_TIMEOUT": 2,
    }
    assert run.calls == simulator.stats()["requests"] == 128
    # Only the answer that came too late was paid for and never heard.
    assert list(simulator.ledger(times=2).values()) == [2]
    assert simulator.stats()["billed"] == 121
    unsettled = "SELECT string_agg(error_code, ' ' ORDER BY id) FROM attempts WHERE billing = "
    assert sorted(in_ledger(runs, f"{unsettled} 'unknown'").split()) == [
        "PROVIDER_BROKE",
        *["PROVIDER_TIMEOUT"] * 2,
        *["PROVIDER_UNREACHABLE"] * 2,
    ]
    check_books(runs, run)


def test_the_books_agree_with_the_providers_but_for_the_calls_of_workers_that_died(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.set_latency(0.1)
    victims = [start_worker(), start_worker()]
    run = runs.runs.generate(prompts(600), max_tokens=16, in_flight=8)
    for number, victim in enumerate(victims, start=1):
        wait_until(partial(has_done, runs, run, 100 * number), "some answers")
        victim.kill()
        start_worker()
    done = ended(runs, run)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 600, 0)
    wait_until(lambda: in_ledger(runs, UNDER_WAY) == 0, "the loss of all lost calls on record")
    check_books(runs, done)
    lost = sum(row.calls for row in runs.usage.unsettled() if row.state == AttemptState.LOST)
    assert lost == in_ledger(runs, UNSETTLED) > 0
    assert 0 <= simulator.stats()["billed"] - done.calls <= lost
    assert done.calls == 600
    assert done.cost_usd is not None
    missed = billed_usd(runs, simulator, GENERATES) - done.cost_usd
    lost_usd = sum((row.expected_cost_usd or 0 for row in runs.usage.unsettled()), Decimal(0))
    assert Decimal(0) <= missed <= lost_usd
    (usage,) = runs.usage.sums()
    assert (usage.calls, usage.cost_usd) == (600 + lost, done.cost_usd)


def test_answers_that_cannot_be_read_are_paid_for_and_count_against_the_limit(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker(**PATIENT)
    simulator.set_fault_rates({"rate": 1, "kind": "truncated"})
    texts = [f"a text of some words with the number {n:05}" for n in range(100)]
    limit = Decimal("0.0003")
    stopped = ended(runs, runs.runs.embed(texts, max_cost_usd=limit))
    assert (stopped.state, stopped.error_code) == (RunState.FAILED, "BUDGET_REACHED")
    assert simulator.stats()["billed"] > 0
    assert billed_usd(runs, simulator, EMBEDS) <= limit
    # Without a limit they end, too, and before each was paid for many times.
    other = [f"another {text}" for text in texts]
    simulator.reset()
    simulator.set_fault_rates({"rate": 1, "kind": "truncated"})
    done = ended(runs, runs.runs.embed(other, max_retries=2))
    assert (done.state, done.failed) == (RunState.COMPLETED, 100)
    assert max(simulator.ledger().values()) <= 2 + MAX_WASTE_FACTOR


def test_a_model_that_is_not_there_ends_a_run_with_its_first_calls(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker(**PATIENT)
    run = ended(runs, runs.runs.embed(["one", "two", "three"], model="unknown-model"))
    assert (run.state, run.error_code) == (RunState.FAILED, "MODEL_NOT_FOUND")
    assert simulator.stats()["requests"] == 1


def test_a_limit_that_is_enough_for_what_is_asked_is_enough(
    runs: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    start_worker(**PATIENT)
    texts = [f"a text of some words with the number {n:05}" for n in range(3_000)]
    preflight = runs.runs.prepare_embedding(texts, max_cost_usd=Decimal("0.001"))
    assert preflight.cost_usd is not None
    assert preflight.cost_usd < Decimal("0.001") < 2 * preflight.cost_usd
    done = ended(runs, runs.runs.start(preflight.run_id))
    assert (done.state, done.succeeded) == (RunState.COMPLETED, 3_000)
    assert billed_usd(runs, simulator, EMBEDS) <= Decimal("0.001")
