"""Half of the throughput for each of two users, however many runs or jobs one has: real workers.

By the order of the calls on record, and not by time. `benchmarks/fair_users.py` shows it in large.
"""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import text

from promptstack.services.jobs.entries import GenerationEntry
from promptstack.simulator.process import MODELS, SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.processes import Process, wait_until

ITEMS = 300
"""Of the user with one run; the other has more than twice as many, and is not done before."""
CALLS = "SELECT user_id FROM attempts ORDER BY id"


def add_user(stack: WorkerServices, name: str) -> UUID:
    with stack.ledger.transaction() as unit:
        id_: UUID = unit.users.create(email=f"{name}@example.com").id
    return id_


def start_run(stack: WorkerServices, user: UUID, items: int, name: str) -> None:
    stack.runs.generate(
        [f"{name}: prompt number {n}" for n in range(items)],
        provider="openai",
        in_flight=8,
        user_id=user,
    )


def share_of(stack: WorkerServices, user: UUID) -> float:
    """Its share of all calls from its first one to its last."""
    with stack.ledger.transaction() as unit:
        calls = list(unit.session.scalars(text(CALLS)))
    first = calls.index(user)
    last = len(calls) - 1 - calls[::-1].index(user)
    return calls.count(user) / (last + 1 - first)


def wait_for(stack: WorkerServices, user: UUID, items: int = ITEMS) -> None:
    """Until all calls of the user's run are on record."""

    def is_done() -> bool:
        with stack.ledger.transaction() as unit:
            calls = list(unit.session.scalars(text(CALLS)))
        return calls.count(user) >= items

    wait_until(is_done, "the calls of the single run", 180.0)


@pytest.fixture(params=["by slots", "by a rate limit"])
def scarce(
    request: pytest.FixtureRequest, runs: WorkerServices, environment: dict[str, str]
) -> str:
    """What there is too little of."""
    if request.param == "by a rate limit":
        limits = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 3000\n'
        Path(environment["MODELS_FILE"]).write_text(MODELS.read_text() + limits)
    return str(request.param)


def test_one_run_has_half_of_the_throughput_beside_twenty_of_another_user(
    scarce: str,
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
) -> None:
    simulator.set_latency(0.1)
    many, single = add_user(runs, "many"), add_user(runs, "single")
    for number in range(20):
        start_run(runs, many, 40, f"run {number}")
    start_run(runs, single, ITEMS, "single")
    start_worker()
    wait_for(runs, single)
    assert 0.4 <= share_of(runs, single) <= 0.6


def test_one_run_has_half_of_a_rate_limit_beside_another_users_bulk_jobs(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    environment: dict[str, str],
) -> None:
    limits = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 900\n'
    Path(environment["MODELS_FILE"]).write_text(MODELS.read_text() + limits)
    many, single = add_user(runs, "many"), add_user(runs, "single")
    entries: list[GenerationEntry] = [
        {"prompt": f"Job {n}", "bulk": True, "provider": "openai", "user_id": many}
        for n in range(250)
    ]
    runs.jobs.enqueue_many(entries)
    start_run(runs, single, 100, "single")
    # Slots enough that neither waits for one.
    start_worker(WORKER_CONCURRENCY="24")
    wait_for(runs, single, 100)
    assert 0.4 <= share_of(runs, single) <= 0.6
