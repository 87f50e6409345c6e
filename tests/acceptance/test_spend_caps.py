"""Spend caps under four workers, by the ledger's books and by the simulator's of what it billed."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.run_models import RunState
from promptstack.services.budgets.service import Scope, Subject
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.budgets import check_sums, spent
from tests.processes import Process, wait_until
from tests.runs import ended, in_ledger, prompts

WORKERS, AT_ONCE = 4, 200
CAP = Decimal(1)
PRICES = '[[prices]]\nprovider = "openai"\nmodel = "*"\ninput_per_million = {}\n'
OPEN = "SELECT count(*) FROM jobs WHERE finished_at IS NULL"
ENDS = "SELECT array_agg(DISTINCT coalesce(error_code, state)) FROM jobs"
PATIENT = {"WORKER_LOST_SECONDS": "60", "WORKER_CONCURRENCY": str(AT_ONCE // WORKERS)}
"""On a busy machine a worker may be silent for long and live: nobody dies here."""


@pytest.fixture
def prices(simulator: SimulatorProcess, environment: dict[str, str]) -> Callable[..., None]:
    """Sets what a million tokens cost; to be said before anything else."""

    def set_(input_: float, output: float = 0) -> None:
        models = Path(environment["MODELS_FILE"])
        said = models.read_text().replace("in_flight = 64", "in_flight = 1000")
        models.write_text(f"{said}\n{PRICES.format(input_)}output_per_million = {output}\n")

    return set_


@pytest.fixture
def key(runs: WorkerServices) -> dict[str, Any]:
    """Whose calls are capped."""
    runs.keys.create("ada@example.org", "Test")
    (made,) = runs.keys.get_all()
    with runs.ledger.transaction() as unit:
        found = unit.api_keys.get(made.id)
        assert found is not None
        return {"user_id": found.user_id, "api_key_id": found.id}


def cap(stack: WorkerServices, key: dict[str, Any], usd: Decimal) -> None:
    stack.budgets.set(Subject(Scope.KEY, key["api_key_id"]), {"total": usd})


def billed_usd(stack: WorkerServices, simulator: SimulatorProcess) -> Decimal:
    """What the provider would put on the bill."""
    let_in = simulator.stats()["admitted"]
    tokens = {name: let_in[name] for name in ("input_tokens", "output_tokens")}
    cost = stack.prices.cost("openai", "gpt-5-mini", **tokens)
    assert cost is not None
    return cost


def check_books(stack: WorkerServices, simulator: SimulatorProcess, key: dict[str, Any]) -> Decimal:
    """Both books say the same, and the budget counts it; what it is."""
    wait_until(
        lambda: in_ledger(stack, "SELECT count(*) FROM attempts WHERE state = 'started'") == 0,
        "the end of all calls",
    )
    paid = billed_usd(stack, simulator)
    assert in_ledger(stack, "SELECT sum(cost_usd) FROM attempts") == paid
    assert spent(stack, key["api_key_id"])["total"] == paid
    assert simulator.ledger(times=2) == {}
    check_sums(stack.ledger)
    return paid


def test_200_calls_at_once_never_pass_a_cap_and_their_jobs_go_on_when_it_is_raised(
    simulator: SimulatorProcess,
    prices: Callable[..., None],
    runs: WorkerServices,
    start_worker: Callable[..., Process],
    key: dict[str, Any],
) -> None:
    prices(15, 150)
    cap(runs, key, CAP)
    for _ in range(WORKERS):
        start_worker(**PATIENT)
    simulator.set_latency(5)
    entries: list[Any] = [{"prompt": f"Prompt {n}", "max_tokens": 10, **key} for n in range(800)]
    jobs = runs.jobs.enqueue_many(entries)
    simulator.wait_until_busy(AT_ONCE, seconds=60)
    simulator.set_latency(0.02)
    wait_until(lambda: in_ledger(runs, OPEN) == 0, "the end of all jobs")
    assert in_ledger(runs, ENDS) == ["KEY_BUDGET_REACHED", "succeeded"]
    paid = check_books(runs, simulator, key)
    # Nothing more would fit: the least that any refused call could have cost at most.
    assert CAP - Decimal("0.003") < paid <= CAP
    done = simulator.stats()["billed"]
    assert simulator.stats()["peak_in_flight"] == AT_ONCE

    cap(runs, key, 2 * CAP)
    *_, retried = runs.operations.follow(
        runs.operations.start("retry", JobFilter(error="KEY_BUDGET_REACHED")).id
    )
    assert retried.done == len(jobs) - done > 0
    wait_until(lambda: in_ledger(runs, OPEN) == 0, "the end of all jobs")
    assert in_ledger(runs, ENDS) == ["succeeded"]
    assert simulator.stats()["billed"] == len(jobs)
    assert check_books(runs, simulator, key) > CAP


@pytest.mark.parametrize("kind", ["generations", "embeddings"])
def test_shards_of_all_workers_never_pass_a_cap_and_a_retry_goes_on(
    simulator: SimulatorProcess,
    prices: Callable[..., None],
    runs: WorkerServices,
    start_worker: Callable[..., Process],
    key: dict[str, Any],
    kind: str,
) -> None:
    if kind == "generations":
        prices(60, 600)
        items, most = 300, Decimal("0.012")
        run = runs.runs.generate(prompts(items), max_tokens=10, in_flight=20, **key)
    else:
        # A text has 10 bytes, so at most as many tokens, and three of them really.
        prices(1_000)
        items, most = 600, Decimal("0.01")
        run = runs.runs.embed([f"text {n:05}" for n in range(items)], in_flight=4, **key)
    cap(runs, key, CAP)
    simulator.set_latency(0.1, spread=0.9)
    for _ in range(2):
        start_worker(**PATIENT)
    stopped = ended(runs, run)
    assert (stopped.state, stopped.error_code) == (RunState.FAILED, "KEY_BUDGET_REACHED")
    assert 0 < stopped.succeeded < items
    assert CAP - most < check_books(runs, simulator, key) <= CAP

    cap(runs, key, 10 * CAP)
    done = ended(runs, runs.runs.retry(run.id))
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, items, 0)
    assert done.cost_usd == check_books(runs, simulator, key) > CAP


def test_documents_at_once_never_pass_a_cap_and_go_on_when_it_is_raised(
    simulator: SimulatorProcess,
    prices: Callable[..., None],
    runs: WorkerServices,
    start_worker: Callable[..., Process],
    key: dict[str, Any],
) -> None:
    prices(500)
    cap(runs, key, CAP)
    simulator.set_latency(0.1, spread=0.9)
    for _ in range(2):
        start_worker(**PATIENT)
    texts = [" ".join(f"word{n}of{number}" for n in range(30)) for number in range(60)]
    entries: list[Any] = [
        {"text": text, "source": f"{number}.txt", "chunk_tokens": 64, **key}
        for number, text in enumerate(texts)
    ]
    runs.jobs.enqueue_many(entries)
    wait_until(lambda: in_ledger(runs, OPEN) == 0, "the end of all jobs")
    assert in_ledger(runs, ENDS) == ["KEY_BUDGET_REACHED", "succeeded"]
    assert 0 < check_books(runs, simulator, key) <= CAP
    cap(runs, key, 100 * CAP)
    list(runs.operations.follow(runs.operations.start("retry", JobFilter()).id))
    wait_until(lambda: in_ledger(runs, OPEN) == 0, "the end of all jobs")
    assert in_ledger(runs, ENDS) == ["succeeded"]
    assert check_books(runs, simulator, key) > CAP
