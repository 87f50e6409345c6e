"""What the ledger knows of the money of each call, and tells of calls that are unsettled."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.api.http.app import create_app
from promptstack.config.settings import Settings
from promptstack.repositories.models import AttemptState, Billing, JobState
from promptstack.services.jobs.views import AttemptView, JobView
from promptstack.simulator.process import MODELS, SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import Process, wait_until
from tests.simulators import ForkedSimulator

PRICES = '[[prices]]\nprovider = "openai"\ninput_per_million = 1000000\noutput_per_million = 0\n'
"""A dollar for each input token."""


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as running:
        yield running


@pytest.fixture
def paid(
    environment: dict[str, str],
    simulator: SimulatorProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[WorkerServices]:
    """A stack whose calls cost money."""
    simulator.reset()
    prices = tmp_path / "models.toml"
    prices.write_text(MODELS.read_text() + PRICES)
    for name, value in {
        "OPENAI_BASE_URL": simulator.url,
        "OPENAI_API_KEY": "sk-test",
        "MODELS_FILE": str(prices),
        "PROVIDER_TIMEOUT_SECONDS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with WorkerServices.open(Settings(_env_file=None)) as stack:
        yield stack


def ask(stack: WorkerServices, **how: Any) -> JobView:
    """Do a job here and now."""
    job = stack.jobs.enqueue_generation("12345678", provider="openai", **{"max_retries": 0, **how})
    execute(stack, job.id)
    return stack.jobs.get(job.id)


def last_call(stack: WorkerServices, job: JobView) -> AttemptView:
    return stack.jobs.get_attempts(job.id)[-1]


@pytest.mark.parametrize(
    ("fault", "billing"),
    [
        ({"kind": "none"}, Billing.BILLED),
        ({"kind": "truncated"}, Billing.BILLED),
        ({"kind": "billed_timeout", "seconds": 3}, Billing.UNKNOWN),
        ({"kind": "reset"}, Billing.UNKNOWN),
        ({"kind": "status", "status": 400}, Billing.NOT_BILLED),
        ({"kind": "status", "status": 503}, Billing.NOT_BILLED),
        ({"kind": "status", "status": 500}, Billing.UNKNOWN),
        ({"kind": "status", "status": 504}, Billing.UNKNOWN),
    ],
    ids=lambda value: "" if isinstance(value, str) else f"{value['kind']}{value.get('status', '')}",
)
def test_each_end_of_a_call_says_what_is_known_of_its_money(
    paid: WorkerServices, simulator: SimulatorProcess, fault: dict[str, Any], billing: Billing
) -> None:
    simulator.control(fault)
    call = last_call(paid, ask(paid))
    assert call.billing == billing
    if billing is Billing.NOT_BILLED:
        assert call.cost_usd == 0
    if billing is Billing.UNKNOWN:
        assert call.cost_usd is None
        assert call.expected_tokens is not None
        assert call.expected_tokens > 0
        assert call.expected_cost_usd is not None
        assert call.expected_cost_usd > 0


def test_a_provider_that_was_never_reached_bills_nothing(
    paid: WorkerServices, simulator: SimulatorProcess
) -> None:
    with ForkedSimulator() as gone:
        nowhere = gone.url
    with WorkerServices.open(
        paid.settings.model_copy(update={"openai_base_url": nowhere})
    ) as stack:
        call = last_call(stack, ask(stack))
    assert (call.state, call.billing, call.cost_usd) == ("failed", "not_billed", Decimal(0))


def test_the_report_sums_what_may_have_been_paid_and_lost(
    paid: WorkerServices, simulator: SimulatorProcess
) -> None:
    ask(paid)
    simulator.control({"kind": "reset"}, {"kind": "status", "status": 400})
    lost, _refused = ask(paid), ask(paid)
    [call] = paid.usage.calls(only_unsettled=True)
    assert (call.job_id, call.state) == (lost.id, AttemptState.FAILED)
    [row] = paid.usage.unsettled()
    assert (row.state, row.calls, row.unknown_cost) == (AttemptState.FAILED, 1, 0)
    assert row.expected_cost_usd == call.expected_cost_usd
    assert len(paid.usage.calls()) == 3


def test_the_command_and_the_http_door_show_the_report(
    paid: WorkerServices, simulator: SimulatorProcess
) -> None:
    simulator.control({"kind": "reset"})
    lost = ask(paid)
    shown = CliRunner().invoke(build(), ["attempts", "--unsettled"])
    assert shown.exit_code == 0, shown.output
    assert str(lost.id) in shown.output
    assert "1 call may have been billed without an answer" in shown.output
    with TestClient(create_app(paid)) as client:
        key = paid.keys.create("ada@example.org", "laptop")
        answer = client.get("/api/v1/usage/calls", headers={"X-API-Key": key})
    shown = answer.json()
    assert (shown["calls"], shown["unsettled"]) == ([], []), "another's calls are not shown"


def test_a_worker_that_dies_leaves_its_call_unsettled(
    paid: WorkerServices, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.control({"kind": "billed_timeout", "seconds": 60})
    worker = start_worker(PROVIDER_TIMEOUT_SECONDS="60")
    job = paid.jobs.enqueue_generation("12345678", provider="openai", max_retries=0)
    wait_until(simulator.ledger, "the call to be billed")
    worker.kill()
    start_worker()
    wait_until(lambda: paid.jobs.get(job.id).state.is_final, "the job to be given up")
    ended = paid.jobs.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "WORKER_LOST")
    assert "not tried again" in (ended.error or "")
    [row] = paid.usage.unsettled()
    assert (row.state, row.calls) == (AttemptState.LOST, 1)
    assert row.expected_cost_usd
    assert row.expected_cost_usd > Decimal(0)


def test_usage_outlives_its_job_and_is_forgotten_later(paid: WorkerServices) -> None:
    ask(paid)
    with paid.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE jobs SET finished_at = now() - interval '2 days'"))
    with paid.ledger.transaction() as unit:
        assert unit.maintenance.prune_jobs(3 * 86_400.0) == 0
        assert unit.maintenance.prune_jobs(86_400.0) == 1
        assert unit.maintenance.prune_attempts(60.0) == 0
    assert paid.jobs.get_many() == []
    assert sum(row.calls for row in paid.usage.sums()) == 1
    with paid.ledger.transaction() as unit:
        assert unit.maintenance.prune_attempts(0.0) == 1
    assert paid.usage.sums() == []
