"""How fast texts become vectors in pgvector: by a run, a script, and the least work there is.

Run `python -m benchmarks.embedding_run --help`. Of a run, the client is its one worker; the time
counts from when it is accepted until all vectors are stored. It packs its calls by itself.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import create_engine, text

from benchmarks.embedding_rivals import RIVALS
from benchmarks.metering import Meter
from benchmarks.own_runs import measure as measure_run
from benchmarks.own_runs import one_worker
from benchmarks.texts import make_texts
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.services.runs.service import RunService
from promptstack.services.runs.views import RunView
from promptstack.simulator.process import SimulatorProcess

LATENCY = 0.2
IN_FLIGHT = 8
NO_LIMIT = 10**12
COLUMNS = (
    "who", "batch", "vectors", "vectors/s", "client CPU ms/1,000", "PostgreSQL CPU ms/1,000",
    "simulator CPU share", "peak RSS MB", "429s", "x script", "of bound",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """One program, once or at the median."""

    rate: float
    client_ms: float
    postgres_ms: float
    simulator_share: float
    peak_mb: float
    throttled: float


def main() -> None:
    """Run each program alone, one after the other, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=50_000)
    parser.add_argument("--script-texts", type=int, default=5_000, help="fewer: it is slow")
    parser.add_argument("--batch", type=int, nargs="+", default=[128, 512, 2_048])
    parser.add_argument("--rounds", type=int, default=3, help="the median is shown")
    parser.add_argument("--who", nargs="+", choices=RIVALS, default=list(RIVALS))
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    found: dict[tuple[str, int, int], Figures] = {}
    try:
        with (
            EmbeddedServers(folder, durable=False) as urls,
            SimulatorProcess(latency=LATENCY) as simulator,
        ):
            simulator.set_limits(requests_per_minute=NO_LIMIT, tokens_per_minute=NO_LIMIT)
            for batch in given.batch:
                for name in given.who:
                    count = given.script_texts if name == "script" else given.texts
                    rounds = [
                        measure(name, simulator, urls.database_url, count, batch)
                        for _ in range(given.rounds)
                    ]
                    found[name, batch, count] = median(rounds)
            ours = [measure_ours(simulator, given.texts) for _ in range(given.rounds)]
            found["a run", 0, given.texts] = median([one for one, _ in ours])
    finally:
        remove(folder)
    show(found)
    accept, index = zip(*(seconds for _, seconds in ours), strict=True)
    Console().print(
        f"a run: accepting took {statistics.median(accept):.1f} s, "
        f"building the index afterwards {statistics.median(index):.1f} s"
    )


def measure(
    name: str, simulator: SimulatorProcess, database_url: str, count: int, batch: int
) -> Figures:
    """Run one program in a process of its own."""
    simulator.reset()
    command = [sys.executable, "-m", "benchmarks.embedding_rivals", name, simulator.url]
    command += [database_url, str(count), str(batch)]
    with (
        Meter(_postmaster(database_url)) as postgres,
        Meter(psutil.Process(simulator.pid)) as simulated,
    ):
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    said = json.loads(done.stdout)
    return Figures(
        rate=count / said["seconds"],
        client_ms=said["cpu_seconds"] * 1e6 / count,
        postgres_ms=postgres.cpu_seconds * 1e6 / count,
        simulator_share=simulated.cpu_seconds / said["seconds"],
        peak_mb=said["peak_rss"] / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )


def measure_ours(simulator: SimulatorProcess, count: int) -> tuple[Figures, tuple[float, float]]:
    """A run on a warm worker; and the seconds of accepting it and of building the index."""
    simulator.reset()
    with one_worker(simulator.url) as deployed:

        def submit(runs: RunService, texts: list[str]) -> RunView:
            return runs.embed(texts, provider="openai", in_flight=IN_FLIGHT)

        measure_run(deployed, lambda runs: submit(runs, ["Warm up."]))
        texts = make_texts(count)
        with Meter(psutil.Process(simulator.pid)) as simulated:
            done = measure_run(deployed, lambda runs: submit(runs, texts))
    if done.run.succeeded != count:
        raise RuntimeError(f"only {done.run.succeeded} of {count} were embedded")
    figures = Figures(
        rate=count / done.seconds,
        client_ms=done.worker_cpu * 1e6 / count,
        postgres_ms=done.postgres_cpu * 1e6 / count,
        simulator_share=simulated.cpu_seconds / done.seconds,
        peak_mb=done.peak_rss / 1e6,
        throttled=simulator.stats()["by_status"].get("429", 0),
    )
    return figures, (done.accept_seconds, done.end_seconds - done.seconds)


def median(rounds: list[Figures]) -> Figures:
    """The median of each figure."""
    names = Figures.__dataclass_fields__
    return Figures(**{it: statistics.median(getattr(one, it) for one in rounds) for it in names})


def show(found: dict[tuple[str, int, int], Figures]) -> None:
    """Print the table; ratios are to the best batch of the script and of the bound."""
    best = {
        who: max((it.rate for key, it in found.items() if key[0] == who), default=float("nan"))
        for who in ("script", "bound")
    }
    table = Table(*COLUMNS)
    for (who, batch, count), it in found.items():
        table.add_row(
            who, f"{batch:,}", f"{count:,}", f"{it.rate:,.0f}", f"{it.client_ms:,.0f}",
            f"{it.postgres_ms:,.0f}", f"{it.simulator_share:.0%}", f"{it.peak_mb:,.0f}",
            f"{it.throttled:.0f}", f"{it.rate / best['script']:.2f}",
            f"{it.rate / best['bound']:.0%}",
        )  # fmt: skip
    Console(width=160).print(table)


def _postmaster(database_url: str) -> psutil.Process:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        backend = psutil.Process(connection.scalar(text("SELECT pg_backend_pid()")))
        postmaster = psutil.Process(backend.ppid())
    engine.dispose()
    return postmaster


if __name__ == "__main__":
    main()
