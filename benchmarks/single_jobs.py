"""Single jobs, enqueued one by one: ours, stock Celery with threads and dramatiq, in one run.

One worker process of each side runs the same generations against the simulator, in turn, on one
Valkey. The time is from the first enqueue to the last result in Redis, by the time that the result
itself names. With --tiny, a job does next to nothing, so that only its way is measured.

CPU is in milliseconds a job: of the producer, the worker, PostgreSQL and Valkey together, with the
simulator, and of each. Run `python -m benchmarks.single_jobs --help`.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

import psutil
from redis import Redis
from sqlalchemy import text

from benchmarks.deployment import Deployment, deployment, wait_until
from benchmarks.job_sides import GENERATIONS, TINY, WEBHOOKS, OpenSide, Side
from benchmarks.metering import Meter
from promptstack.simulator.process import SimulatorProcess

MODELS = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 1000000\nin_flight = 1000\n'
"""Limits that no call waits for, so that only the way of a job is measured."""
PATIENCE = 300.0
OURS = "ours"


@dataclass(frozen=True)
class Measured:
    """What one round of one side came to; CPU in milliseconds a job."""

    jobs_a_second: float
    enqueued_a_second: float
    cpu: float
    """Of all processes but the simulator."""
    cpu_with_simulator: float
    worker: float
    producer: float
    postgres: float
    valkey: float
    peak_rss_mb: float
    """Of the process that runs the jobs."""
    calls_at_once: float
    refused: float


COLUMNS = (
    "jobs/s", "enq./s", "CPU", "+ simul.", "worker", "producer", "PG", "Valkey", "RSS MB",
    "calls", "429s",
)  # fmt: skip
COMPARED = ("jobs_a_second", "cpu", "cpu_with_simulator", "worker", "peak_rss_mb")
Rounds = Mapping[str, list[Measured]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all sides in turn, some rounds; print each round, the medians and the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--tiny", type=int, metavar="N", help="N jobs that do next to nothing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=200, help="jobs that run at once")
    parser.add_argument("--latency", type=float, default=0.5, help="of the simulator, in seconds")
    parser.add_argument("--producers", type=int, default=8, help="threads that enqueue")
    parser.add_argument("--warm-up", type=int, default=200, help="jobs before each round")
    parser.add_argument("--only", help="a side's name: ours, stock or dramatiq")
    parser.add_argument(
        "--webhooks", action="store_true", help="ours alone: what webhooks cost jobs that have none"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    given = parser.parse_args(arguments)
    if given.tiny:
        given.jobs = given.tiny
    sides = TINY if given.tiny else GENERATIONS
    sides = WEBHOOKS if given.webhooks else sides
    sides = {name: it for name, it in sides.items() if given.only in (None, name.split(",")[0])}
    if not sides:
        parser.error(f"there is no side {given.only}")
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    if not given.json:
        _say("side", COLUMNS)
    with SimulatorProcess(latency=given.latency) as simulator:
        simulator.set_limits(requests_per_minute=10**9, tokens_per_minute=10**12)
        # As Celery's own workers log by default.
        with deployment(simulator.url, MODELS, LOG_LEVEL="WARNING") as deployed:
            for number in range(given.rounds):
                for name, open_side in sides.items():
                    measured = _measure(open_side, number, simulator, deployed, given)
                    found[name].append(measured)
                    if not given.json:
                        _say(name, _cells(measured))
    _report(found, as_json=given.json)
    return 0


def _measure(
    open_side: OpenSide,
    number: int,
    simulator: SimulatorProcess,
    deployed: Deployment,
    given: argparse.Namespace,
) -> Measured:
    with open_side(deployed, given.slots) as side:
        # Every text is new: what is known already would not be asked for.
        _run(side, [f"Warm-up {number}.{job}" for job in range(given.warm_up)], given.producers)
        simulator.reset()
        texts = [f"Question {number}.{job}: what is a ledger?" for job in range(given.jobs)]
        with ExitStack() as metered:
            meters = {
                name: metered.enter_context(Meter(process))
                for name, process in _processes(side, simulator, deployed)
            }
            enqueueing, seconds = _run(side, texts, given.producers)
        stats = simulator.stats()
    cpu = {name: meter.cpu_seconds / given.jobs * 1e3 for name, meter in meters.items()}
    with_simulator = sum(cpu.values())
    return Measured(
        jobs_a_second=given.jobs / seconds,
        enqueued_a_second=given.jobs / enqueueing,
        cpu=with_simulator - cpu.pop("simulator"),
        cpu_with_simulator=with_simulator,
        peak_rss_mb=meters["worker"].peak_rss / 1e6,
        calls_at_once=stats["peak_in_flight"],
        refused=stats["by_status"].get("429", 0),
        **cpu,
    )


def _processes(
    side: Side, simulator: SimulatorProcess, deployed: Deployment
) -> Iterator[tuple[str, psutil.Process]]:
    with deployed.stack.ledger.transaction() as unit:
        backend = psutil.Process(unit.session.scalar(text("SELECT pg_backend_pid()")))
    with Redis.from_url(deployed.stack.redis_url) as redis:
        info: Any = redis.info("server")
    yield "worker", side.worker
    yield "producer", psutil.Process()
    yield "postgres", psutil.Process(backend.ppid())
    yield "valkey", psutil.Process(info["process_id"])
    yield "simulator", psutil.Process(simulator.pid)


def _run(side: Side, texts: Sequence[str], producers: int) -> tuple[float, float]:
    """Enqueue and wait; seconds from the first enqueue to the last one, and to the last result."""
    began = last = datetime.now(UTC)
    with ThreadPoolExecutor(producers) as pool:
        open_ = list(pool.map(side.enqueue, texts))
    enqueued = datetime.now(UTC)

    def is_done() -> bool:
        nonlocal open_, last
        ended = side.ended(open_)
        last = max([last, *filter(None, ended)])
        open_ = [key for key, at in zip(open_, ended, strict=True) if at is None]
        return not open_

    # Seldom: what looks takes part of the sides' processors.
    wait_until(is_done, PATIENCE, pause=0.5)
    return (enqueued - began).total_seconds(), (last - began).total_seconds()


def _report(found: Rounds, *, as_json: bool) -> None:
    medians = {name: _medians(rounds) for name, rounds in found.items()}
    ratios = {
        f"ours/{name}": {
            column: _ratio(found[OURS], found[name], column)
            for column in COMPARED
            # Processor time comes in ticks of 10 ms: that of a few jobs may be none.
            if all(getattr(measured, column) for measured in found[name])
        }
        for name in found
        if name != OURS and OURS in found
    }
    if as_json:
        rounds = {name: [asdict(each) for each in measured] for name, measured in found.items()}
        medians_said = {name: asdict(median) for name, median in medians.items()}
        said = {"rounds": rounds, "medians": medians_said, "ratios": ratios}
        sys.stdout.write(json.dumps(said) + "\n")
        return
    for name, median in medians.items():
        _say(f"{name}, median", _cells(median))
    for name, columns in ratios.items():
        for column, (middle, low, high) in columns.items():
            sys.stdout.write(f"{name}, {column}: {middle:.2f} ({low:.2f} to {high:.2f})\n")


def _medians(rounds: Sequence[Measured]) -> Measured:
    return Measured(
        **{
            field.name: statistics.median(getattr(each, field.name) for each in rounds)
            for field in fields(Measured)
        }
    )


def _ratio(
    ours: Sequence[Measured], theirs: Sequence[Measured], column: str
) -> tuple[float, float, float]:
    """Of each round by itself: the median, the lowest and the highest."""
    ratios = [
        getattr(our, column) / getattr(their, column)
        for our, their in zip(ours, theirs, strict=True)
    ]
    return statistics.median(ratios), min(ratios), max(ratios)


def _cells(measured: Measured) -> list[str]:
    return [
        f"{value:.0f}" if value >= 100 else f"{value:.1f}" for value in asdict(measured).values()
    ]


def _say(name: str, cells: Sequence[str]) -> None:
    sys.stdout.write(f"{name:<24}" + "".join(f"{cell:>9}" for cell in cells) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
