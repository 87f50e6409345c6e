"""A run: what makes it worth nothing is no success."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from promptstack.chaos.clients import Clients
from promptstack.chaos.driver import Act, NothingToHit
from promptstack.chaos.existing_deployment import run_on_existing
from promptstack.chaos.judge import Judge
from promptstack.chaos.load import Load, Target
from promptstack.chaos.plan import Fault, Planned, draw
from promptstack.chaos.run import Order, run
from promptstack.chaos.scorecard import Scorecard
from promptstack.chaos.servers import dsn
from promptstack.tasks.composition import PromptStack
from tests.processes import Process, wait_until

DEMO = Target("demo", None, embedding_model=None)


def run_it(stack: PromptStack, target: Target, acts: Mapping[Fault, Act]) -> Scorecard:
    plan = draw(1, 1.0, kills=1, times=0, faults=list(acts))
    return run(
        Order(1, 2, plan, slots=1, patience=60.0),
        Load(stack.jobs, stack.ledger, target, name="run", seconds=0.0),
        acts,
        Judge(dsn(stack.database_url)),
        books=None,
        progress=stack.progress,
        say=lambda line: None,
    )


def nobody(planned: Planned) -> None:
    raise NothingToHit("all workers are elsewhere")


def test_a_run_without_a_fault_that_could_be_done_does_not_pass(
    stack: PromptStack, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    scorecard = run_it(stack, DEMO, {Fault.KILL: nobody})
    assert not scorecard.passed
    assert scorecard.problems() == ["no fault could be done"]
    assert run_it(stack, DEMO, {}).passed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_load_that_was_refused_does_not_pass(stack: PromptStack) -> None:
    scorecard = run_it(stack, Target("nobody", None, embedding_model=None), {})
    assert not scorecard.passed
    assert "2 jobs of the load were never accepted" in scorecard.problems()


def test_a_server_that_stays_away_ends_the_run_and_not_the_patience_of_who_waits(
    stack: PromptStack,
) -> None:
    nobody_answers = "http://127.0.0.1:1"
    clients = Clients(nobody_answers, "ps_x", DEMO, name="away", clients=2, seconds=0.0)
    scorecard = run(
        Order(1, 2, [], slots=1, patience=1.0),
        clients,
        {},
        Judge(dsn(stack.database_url)),
        books=None,
        progress=stack.progress,
        say=lambda line: None,
    )
    assert "2 jobs of the load were never accepted" in scorecard.problems()


def test_a_kept_process_that_does_not_end_is_ended_by_force(tmp_path: Path) -> None:
    said = tmp_path / "said"
    stubborn = (
        "import pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"pathlib.Path({str(said)!r}).write_text('here'); time.sleep(600)"
    )
    keep = "from promptstack.chaos import keep; keep.END_SECONDS = 0.5; keep.main()"
    command = [sys.executable, "-c", keep, "1", sys.executable, "-c", stubborn]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as keeper:
        wait_until(lambda: said.exists() and said.read_text() == "here", "the process")
        [process] = psutil.Process(keeper.pid).children()
        keeper.terminate()
        keeper.wait(60)
    assert not process.is_running()


def test_a_frozen_worker_stays_frozen_until_the_deployment_counts_it_as_dead(
    stack: PromptStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[Order] = []
    monkeypatch.setattr(
        "promptstack.chaos.existing_deployment.run",
        lambda order, *rest, **more: orders.append(order),
    )
    monkeypatch.setattr(stack.settings, "worker_lost_seconds", 60.0)
    faults: Sequence[Fault] = [Fault.STOP]
    run_on_existing(
        stack,
        seed=1,
        jobs=1,
        seconds=10.0,
        kills=0,
        times=3,
        faults=faults,
        target=DEMO,
        simulator_url=None,
        patience=1.0,
        say=lambda line: None,
    )
    assert all(planned.seconds > 60.0 for planned in orders[0].plan)
