"""How fast many generations are answered: by a run, and by programs that a user would write.

Run `python -m benchmarks.generation_run --help`. The programs take turns, round by round. Of a run,
the time counts from when it is accepted, on one worker that has loaded the SDK, as one in service
has. Its processor time is that of all its processes: worker, PostgreSQL, Valkey, and the program
that hands it in; a rival is one process.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.deployment import Deployment
from benchmarks.generation_rivals import RIVALS
from benchmarks.metering import Meter
from benchmarks.own_runs import OwnRun, one_worker
from benchmarks.own_runs import measure as measure_run
from promptstack.services.runs.service import RunService
from promptstack.services.runs.views import RunView
from promptstack.simulator.process import SimulatorProcess

OURS = "a run"
COMPARED = "script on aiohttp"
"""The rival to which ratios are given."""
NO_LIMIT = 10**12
COLUMNS = (
    "who", "makespan s", f"x {COMPARED}", "items/s", "CPU ms/item", f"x {COMPARED}",
    "simulator CPU share", "peak RSS MB", "429s",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One program in one round."""

    seconds: float
    cpu_ms: float
    """An item, of all processes of the program."""
    simulator_share: float
    peak_mb: float
    throttled: float
    parts: str = ""
    """Whose processor time it is, where several processes share it."""


def main() -> None:
    """Let the programs take turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=2_000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds of each answer")
    parser.add_argument("--rounds", type=int, default=3, help="the median is shown")
    given = parser.parse_args()
    found: dict[str, list[Figures]] = {name: [] for name in (*RIVALS, OURS)}
    with SimulatorProcess(latency=given.latency) as simulator, one_worker(simulator.url) as ours:
        simulator.set_limits(requests_per_minute=NO_LIMIT, tokens_per_minute=NO_LIMIT)
        measure_run(ours, lambda runs: submit(runs, "Warm up", 20, given.in_flight))
        for number in range(given.rounds):
            for name in RIVALS:
                found[name].append(measure(name, simulator, given.items, given.in_flight))
            found[OURS].append(measure_ours(ours, simulator, number, given.items, given.in_flight))
    show(found, given.items)


def submit(runs: RunService, prefix: str, items: int, in_flight: int) -> RunView:
    """Hand in a run whose prompts no other run has."""
    prompts = [f"{prefix} {number}: why is the sky blue, and not green?" for number in range(items)]
    return runs.generate(prompts, provider="openai", in_flight=in_flight, max_tokens=64)


def measure(name: str, simulator: SimulatorProcess, count: int, in_flight: int) -> Figures:
    """Run one program in a process of its own."""
    simulator.reset()
    command = [sys.executable, "-m", "benchmarks.generation_rivals", name, simulator.url]
    with Meter(psutil.Process(simulator.pid)) as simulated:
        done = subprocess.run(
            [*command, str(count), str(in_flight)], check=True, stdout=subprocess.PIPE
        )
    said = json.loads(done.stdout)
    return Figures(
        seconds=said["seconds"],
        cpu_ms=said["cpu_seconds"] * 1e3 / count,
        simulator_share=simulated.cpu_seconds / said["seconds"],
        peak_mb=said["peak_rss"] / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def measure_ours(
    deployed: Deployment, simulator: SimulatorProcess, number: int, count: int, in_flight: int
) -> Figures:
    """One run. Raises `RuntimeError` where not all of it was answered."""
    simulator.reset()
    with Meter(psutil.Process(simulator.pid)) as simulated:
        done = measure_run(
            deployed, lambda runs: submit(runs, f"Question {number}", count, in_flight)
        )
    if done.run.succeeded != count:
        raise RuntimeError(f"only {done.run.succeeded} of {count} were answered")
    parts = processes(done)
    return Figures(
        seconds=done.seconds,
        cpu_ms=sum(parts.values()) * 1e3 / count,
        simulator_share=simulated.cpu_seconds / done.seconds,
        peak_mb=done.peak_rss / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
        parts=", ".join(f"{who} {cpu * 1e3 / count:.2f}" for who, cpu in parts.items())
        + f"; accepting took {done.accept_seconds:.2f} s",
    )


def processes(done: OwnRun) -> dict[str, float]:
    """The processor seconds of each of our processes."""
    return {
        "worker": done.worker_cpu,
        "PostgreSQL": done.postgres_cpu,
        "Valkey": done.redis_cpu,
        "accepting": done.accept_cpu,
    }


def show(found: dict[str, list[Figures]], items: int) -> None:
    """Print medians, and in brackets the lowest and highest. Ratios are taken round by round."""
    table = Table(*COLUMNS)
    for name, rounds in found.items():
        beside = list(zip(rounds, found[COMPARED], strict=True))
        table.add_row(
            name,
            spread([it.seconds for it in rounds]),
            spread([it.seconds / its.seconds for it, its in beside]),
            f"{statistics.median(items / it.seconds for it in rounds):,.0f}",
            spread([it.cpu_ms for it in rounds]),
            spread([it.cpu_ms / its.cpu_ms for it, its in beside]),
            *(f"{_median(rounds, how):{form}}" for how, form in _PLAIN),
        )
    console = Console(width=160)
    console.print(table)
    for it in found[OURS]:
        console.print(f"{OURS}, CPU ms/item: {it.parts}")


def spread(values: Sequence[float]) -> str:
    """The median, the lowest and the highest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


_PLAIN: Sequence[tuple[Callable[[Figures], float], str]] = (
    (lambda it: it.simulator_share, ".0%"),
    (lambda it: it.peak_mb, ",.0f"),
    (lambda it: it.throttled, ".0f"),
)


def _median(rounds: list[Figures], how: Callable[[Figures], float]) -> float:
    return statistics.median(map(how, rounds))


if __name__ == "__main__":
    main()
