"""How fast texts become vectors in pgvector: by a run, and by what you would write instead.

Run `python -m benchmarks.embedding_run --help`. Each round runs all programs, one after the other,
in new processes. Of a run, the client is its one worker; the time counts from when it is accepted
until all vectors are stored. It packs its calls by itself, and the others make calls as large.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text

from benchmarks.embedding_rivals import MODELS, RIVALS
from benchmarks.metering import Meter, high_water
from benchmarks.own_runs import measure as measure_run
from benchmarks.own_runs import one_worker
from benchmarks.texts import make_texts
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.services.runs.service import RunService
from promptstack.services.runs.views import RunView
from promptstack.simulator.process import SimulatorProcess

LATENCY = 0.2
NO_LIMIT = 10**12
OURS = "a run"
COLUMNS = (
    "who", "texts a call", "vectors", "vectors/s", "a run is", "client CPU ms/1,000",
    "PostgreSQL CPU ms/1,000", "simulator CPU share", "peak RSS MB", "429s",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One program, once."""

    count: int
    batch: int
    """Texts in a call."""
    rate: float
    client_ms: float
    postgres_ms: float
    simulator_share: float
    peak_mb: float
    throttled: float


def main() -> None:
    """Run all programs in turn, several rounds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--dimensions", type=int, choices=MODELS, default=1_536)
    parser.add_argument("--in-flight", type=int, default=8, help="calls under way at once")
    parser.add_argument("--rounds", type=int, default=3, help="median and spread are shown")
    parser.add_argument("--who", nargs="*", choices=RIVALS, default=["bare"])
    parser.add_argument("--script-texts", type=int, default=5_000, help="fewer: it is slow")
    given = parser.parse_args()
    found: dict[str, list[Figures]] = defaultdict(list)
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with (
            EmbeddedServers(folder, durable=False) as urls,
            SimulatorProcess(latency=LATENCY) as simulator,
        ):
            simulator.set_limits(requests_per_minute=NO_LIMIT, tokens_per_minute=NO_LIMIT)
            for _ in range(given.rounds):
                ours = measure_ours(simulator, given.texts, given.dimensions, given.in_flight)
                found[OURS].append(ours)
                for name in given.who:
                    count = given.script_texts if name == "script" else given.texts
                    options = {"--texts": count, "--batch": ours.batch}
                    options |= {"--dimensions": given.dimensions, "--in-flight": given.in_flight}
                    rival = measure(name, simulator, urls.database_url, options)
                    found[name].append(rival)
    finally:
        remove(folder)
    show(found)
    Console().print(f"{given.dimensions:,} dimensions, {given.in_flight} calls under way.")


def measure(
    name: str, simulator: SimulatorProcess, database_url: str, options: dict[str, int]
) -> Figures:
    """Run one program in a process of its own."""
    simulator.reset()
    command = [sys.executable, "-m", "benchmarks.embedding_rivals", name, simulator.url]
    command += [database_url, *(str(part) for option in options.items() for part in option)]
    with (
        Meter(_postmaster(database_url)) as postgres,
        Meter(psutil.Process(simulator.pid)) as simulated,
    ):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    said, count = json.loads(done.stdout), options["--texts"]
    return Figures(
        count=count,
        batch=options["--batch"],
        rate=count / said["seconds"],
        client_ms=said["cpu_seconds"] * 1e6 / count,
        postgres_ms=postgres.cpu_seconds * 1e6 / count,
        simulator_share=simulated.cpu_seconds / said["seconds"],
        peak_mb=said["peak_rss"] / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def measure_ours(
    simulator: SimulatorProcess, count: int, dimensions: int, in_flight: int
) -> Figures:
    """A run on a warm worker. The index, which the others have not, is built afterwards."""
    with one_worker(simulator.url) as deployed:

        def submit(runs: RunService, texts: list[str]) -> RunView:
            return runs.embed(
                texts, provider="openai", model=MODELS[dimensions], in_flight=in_flight
            )

        measure_run(deployed, lambda runs: submit(runs, ["Warm up."]))
        simulator.reset()
        texts = make_texts(count)
        with Meter(psutil.Process(simulator.pid)) as simulated:
            done = measure_run(deployed, lambda runs: submit(runs, texts), until_end=False)
        peak = high_water(deployed.workers[0].pid)
    if done.run.succeeded != count:
        raise RuntimeError(f"only {done.run.succeeded} of {count} were embedded")
    return Figures(
        count=count,
        batch=ceil(count / max(1, done.run.calls)),
        rate=count / done.seconds,
        client_ms=done.worker_cpu * 1e6 / count,
        postgres_ms=done.postgres_cpu * 1e6 / count,
        simulator_share=simulated.cpu_seconds / done.seconds,
        peak_mb=peak / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def show(found: dict[str, list[Figures]]) -> None:
    """Print medians with their lowest and highest; a ratio is that of the same round."""
    table = Table(*COLUMNS)
    for who, rounds in found.items():
        ratios = [ours.rate / it.rate for ours, it in zip(found[OURS], rounds, strict=True)]
        table.add_row(
            who, f"{statistics.median(it.batch for it in rounds):,.0f}", f"{rounds[0].count:,}",
            spread([it.rate for it in rounds], "{:,.0f}"),
            "" if who == OURS else spread(ratios, "{:.2f}") + "x",
            spread([it.client_ms for it in rounds], "{:,.0f}"),
            spread([it.postgres_ms for it in rounds], "{:,.0f}"),
            spread([it.simulator_share for it in rounds], "{:.0%}"),
            spread([it.peak_mb for it in rounds], "{:,.0f}"),
            f"{statistics.median(it.throttled for it in rounds):.0f}",
        )  # fmt: skip
    Console(width=180).print(table)


def spread(values: Sequence[float], form: str) -> str:
    """The median, with the lowest and the highest of several."""
    middle = form.format(statistics.median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({form.format(min(values))} to {form.format(max(values))})"


def _postmaster(database_url: str) -> psutil.Process:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        backend = psutil.Process(connection.scalar(text("SELECT pg_backend_pid()")))
        postmaster = psutil.Process(backend.ppid())
    engine.dispose()
    return postmaster


if __name__ == "__main__":
    main()
