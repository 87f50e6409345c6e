"""How fast many generations are answered: by a run, and by programs that a user would write.

Run `python -m benchmarks.generation_run --help`. Of a run, the client is its one worker; the time
counts from when it is accepted.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.generation_rivals import RIVALS
from benchmarks.metering import Meter
from benchmarks.own_runs import measure as measure_run
from benchmarks.own_runs import one_worker
from promptstack.services.runs.service import RunService
from promptstack.services.runs.views import RunView
from promptstack.simulator.process import SimulatorProcess

LATENCY = 0.5
OURS = "a run"
NO_LIMIT = 10**12
COLUMNS = (
    "who", "makespan s", "items/s", "client CPU ms/item", "simulator CPU share", "peak RSS MB",
    "429s",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One program, once or at the median."""

    seconds: float
    client_ms: float
    simulator_share: float
    peak_mb: float
    throttled: float


def main() -> None:
    """Run each program alone, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="the median is shown")
    given = parser.parse_args()
    table = Table(*COLUMNS)
    with SimulatorProcess(latency=LATENCY) as simulator:
        simulator.set_limits(requests_per_minute=NO_LIMIT, tokens_per_minute=NO_LIMIT)
        for name in (*RIVALS, OURS):
            rounds = [
                measure(name, simulator, given.items, given.in_flight) for _ in range(given.rounds)
            ]
            it = median(rounds)
            table.add_row(
                name, f"{it.seconds:.2f}", f"{given.items / it.seconds:,.0f}",
                f"{it.client_ms:.2f}", f"{it.simulator_share:.0%}", f"{it.peak_mb:,.0f}",
                f"{it.throttled:.0f}",
            )  # fmt: skip
    Console(width=120).print(table)


def measure(name: str, simulator: SimulatorProcess, count: int, in_flight: int) -> Figures:
    """Run one program in a process of its own."""
    simulator.reset()
    if name == OURS:
        return measure_ours(simulator, count, in_flight)
    command = [sys.executable, "-m", "benchmarks.generation_rivals", name, simulator.url]
    with Meter(psutil.Process(simulator.pid)) as simulated:
        done = subprocess.run(
            [*command, str(count), str(in_flight)], check=True, stdout=subprocess.PIPE
        )
    said = json.loads(done.stdout)
    return Figures(
        seconds=said["seconds"],
        client_ms=said["cpu_seconds"] * 1e3 / count,
        simulator_share=simulated.cpu_seconds / said["seconds"],
        peak_mb=said["peak_rss"] / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def measure_ours(simulator: SimulatorProcess, count: int, in_flight: int) -> Figures:
    """A run on a worker that has loaded the SDK, as one in service has."""
    with one_worker(simulator.url) as deployed:

        def submit(runs: RunService, prefix: str = "Say", items: int = count) -> RunView:
            prompts = [f"{prefix} {number}" for number in range(items)]
            return runs.generate(prompts, provider="openai", in_flight=in_flight, max_tokens=64)

        measure_run(deployed, lambda runs: submit(runs, "Warm up", 20))
        with Meter(psutil.Process(simulator.pid)) as simulated:
            done = measure_run(deployed, submit)
    if done.run.succeeded != count:
        raise RuntimeError(f"only {done.run.succeeded} of {count} were answered")
    return Figures(
        seconds=done.seconds,
        client_ms=done.worker_cpu * 1e3 / count,
        simulator_share=simulated.cpu_seconds / done.seconds,
        peak_mb=done.peak_rss / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def median(rounds: list[Figures]) -> Figures:
    """The median of each figure."""
    names = Figures.__dataclass_fields__
    return Figures(**{it: statistics.median(getattr(one, it) for one in rounds) for it in names})


if __name__ == "__main__":
    main()
