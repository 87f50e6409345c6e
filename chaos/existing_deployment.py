"""A run on an existing deployment, which somebody else keeps running: `promptstack chaos`."""

from collections.abc import Callable, Sequence
from uuid import uuid4

import psycopg2

from promptstack.chaos.driver import Act, on_workers
from promptstack.chaos.judge import Judge
from promptstack.chaos.load import Load, Target
from promptstack.chaos.plan import Fault, Planned, draw
from promptstack.chaos.run import Order, run
from promptstack.chaos.scorecard import Scorecard
from promptstack.chaos.servers import CUT, dsn
from promptstack.chaos.workers import ExistingWorkers
from promptstack.simulator.process import SimulatorClient
from promptstack.tasks.composition import PromptStack

POSSIBLE = (Fault.KILL, Fault.STOP, Fault.TERM, Fault.FLUSH, Fault.CUT)
"""What can be done from outside; the rest needs a local deployment."""


def run_on_existing(
    stack: PromptStack,
    *,
    seed: int,
    jobs: int,
    seconds: float,
    kills: int,
    times: int,
    faults: Sequence[Fault],
    target: Target,
    simulator_url: str | None,
    patience: float,
    say: Callable[[str], None],
) -> Scorecard:
    """Send a load, hurt the workers of this machine and the servers' connections, and judge.

    Whoever keeps the workers running must start them again. With `simulator_url`, calls that were
    billed twice are judged too.
    """
    load = Load(stack.jobs, stack.ledger, target, name=f"chaos {uuid4()}", seconds=seconds * 0.9)
    workers = ExistingWorkers(stack.ledger)
    lost_seconds = stack.settings.worker_lost_seconds
    with stack.ledger.transaction() as unit:
        slots = unit.workers.count_alive(lost_seconds)
    return run(
        Order(
            seed,
            jobs,
            draw(seed, seconds, kills=kills, times=times, faults=faults, lost_seconds=lost_seconds),
            slots * stack.settings.worker_concurrency,
            patience,
            lost_seconds,
        ),
        load,
        {fault: act for fault, act in _acts(stack, workers).items() if fault in faults},
        Judge(dsn(stack.database_url)),
        books=SimulatorClient(simulator_url).ledger if simulator_url else None,
        progress=stack.progress,
        say=say,
    )


def _acts(stack: PromptStack, workers: ExistingWorkers) -> dict[Fault, Act]:
    def flush(planned: Planned) -> None:
        stack.redis.flushdb()

    def cut(planned: Planned) -> None:
        with psycopg2.connect(dsn(stack.database_url)) as connection:
            connection.cursor().execute(CUT)
        stack.redis.client_kill_filter(_type="normal", skipme=True)

    return {**on_workers(workers), Fault.FLUSH: flush, Fault.CUT: cut}
