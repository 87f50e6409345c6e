"""How long commands take to say something, and a worker until it takes its first job.

Beside each stands what `python -c 'import celery'` takes on this machine, in the same round: a
start is mostly imports, so the ratio holds where the machine is slower. `doctor` meets a provider
that takes a connection and never answers. Run `python -m benchmarks.startup --help`.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.deployment import ROOT, Deployment, deployment, start, wait_until
from promptstack.repositories.models import JobState

COMMAND = str(Path(sys.executable).with_name("promptstack"))
REFERENCE = "import celery"
COMMANDS = {
    REFERENCE: [sys.executable, "-c", "import celery"],
    "import celery.app": [sys.executable, "-c", "import celery.app.base"],
    "--help": [COMMAND, "--help"],
    "completion": [COMMAND],
    "jobs list": [COMMAND, "jobs", "list"],
    "keys list": [COMMAND, "keys", "list"],
    "doctor": [COMMAND, "doctor"],
}
COMPLETING = {
    "_PROMPTSTACK_COMPLETE": "complete_bash",
    "COMP_WORDS": "promptstack jobs ",
    "COMP_CWORD": "2",
}
WORKER = "worker"
LOOK_SECONDS = 0.01
PATIENCE = 120.0

Taken = tuple[float, float]
"""Seconds by the clock, and of the processor."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure each start, some rounds; print medians, the spread and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    with _hanging_provider() as url, deployment(url, "", LOG_LEVEL="WARNING") as deployed:
        rounds = [_round(deployed) for _ in range(given.rounds)]
    _report(rounds, as_json=given.json)
    return 0


def _round(deployed: Deployment) -> dict[str, Taken]:
    taken = {}
    for name, command in COMMANDS.items():
        completing = COMPLETING if name == "completion" else {}
        taken[name] = _run(command, {**deployed.variables, **completing})
    taken[WORKER] = _worker(deployed)
    return taken


def _run(command: list[str], variables: Mapping[str, str]) -> Taken:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, **variables}, check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _worker(deployed: Deployment) -> Taken:
    """From the start of a worker's process until it has taken the job that waits."""
    job = deployed.stack.jobs.enqueue_generation("Say hello.", provider="demo")

    def is_taken() -> bool:
        return deployed.stack.jobs.get(job.id).state is not JobState.QUEUED

    with ExitStack() as processes:
        log = (deployed.folder / "worker.log").open("ab")
        began = time.monotonic()
        command = [sys.executable, "-m", "promptstack.worker"]
        worker = start(command, deployed.variables, processes, log)
        wait_until(is_taken, PATIENCE, pause=LOOK_SECONDS)
        seconds = time.monotonic() - began
        clock = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(clock[11]) + int(clock[12])
        deployed.stack.jobs.wait([job.id], PATIENCE)
    return seconds, ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def _hanging_provider() -> Iterator[str]:
    """The address of a server that takes connections, and reads and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"


def _report(rounds: list[dict[str, Taken]], *, as_json: bool) -> None:
    found = {name: _summary(name, rounds) for name in rounds[0]}
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    sys.stdout.write(f"{'':<20}{'seconds':>9}{'lowest':>9}{'highest':>9}{'CPU s':>9}{'ratio':>9}\n")
    for name, figures in found.items():
        cells = "".join(f"{value:>9.2f}" for value in figures.values())
        sys.stdout.write(f"{name:<20}{cells}\n")


def _summary(name: str, rounds: list[dict[str, Taken]]) -> dict[str, float]:
    seconds = [taken[name][0] for taken in rounds]
    return {
        "seconds": statistics.median(seconds),
        "lowest": min(seconds),
        "highest": max(seconds),
        "cpu_seconds": statistics.median(taken[name][1] for taken in rounds),
        "ratio_to_import_celery": statistics.median(
            taken[name][0] / taken[REFERENCE][0] for taken in rounds
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
