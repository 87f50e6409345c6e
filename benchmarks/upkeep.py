"""What a worker's own upkeep costs: its periodic threads, and PostgreSQL for what they ask.

A worker with nothing to do is measured, then one with 200 running jobs and 10,000 queued ones. The
running jobs only wait, so that all else is upkeep. Run `python -m benchmarks.upkeep --help`.
"""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import psutil
from sqlalchemy import text

from benchmarks.deployment import Deployment, deployment, wait_until
from promptstack.config.settings import load_settings
from promptstack.repositories.jobs.outbox import RESTARTED_SECONDS
from promptstack.repositories.models import JobState
from promptstack.tasks import broker
from promptstack.tasks.worker_services import WorkerServices
from promptstack.worker.process import WorkerProcess

TICKS = os.sysconf("SC_CLK_TCK")
WAIT_SECONDS = 3_600
OTHERS, POSTGRESQL = "other threads", "PostgreSQL"
UPKEEP = ("heartbeat", "liveness", "messages", "cleanup", "runs", "views", "leases")
FILL = text(
    "INSERT INTO jobs (id, kind, queue, provider, model, request, request_hash, max_retries, "
    "expires_at) SELECT gen_random_uuid(), 'generation', 'generation', 'demo', 'demo', "
    "jsonb_build_object('provider', 'demo', 'model', 'demo', 'prompt', 'Question ' || n, "
    "'options', jsonb_build_object('delay_seconds', CAST(:wait AS int))), md5(n::text), 3, "
    "now() + interval '1 day' FROM generate_series(1, :jobs) AS n"
)

Costs = dict[str, float]
"""Percent of one processor, by who used it."""


def main() -> int:
    """Print what each thread costs, idle and busy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queued", type=int, default=10_000)
    parser.add_argument("--running", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--settle",
        type=float,
        default=RESTARTED_SECONDS,
        help="seconds before each measurement; for a minute a started Redis is looked at closely",
    )
    given = parser.parse_args()
    with deployment("http://127.0.0.1:1", "", WORKER_CONCURRENCY=str(given.running)) as deployed:
        Measurement(deployed, given).run()
    return 0


class Measurement:
    """One worker, in this process: only here its threads have names."""

    def __init__(self, deployed: Deployment, given: argparse.Namespace) -> None:
        self._deployed = deployed
        self._queued, self._running = given.queued, given.running
        self._seconds, self._rounds, self._settle = given.seconds, given.rounds, given.settle

    def run(self) -> None:
        """Measure in a thread, as a worker needs the main one."""
        os.environ.update(self._deployed.variables)
        broker.use_in_this_process()
        settings = load_settings(_env_file=None, shutdown_grace_seconds=0.1)
        with ThreadPoolExecutor(1) as pool, WorkerServices.open(settings) as services:
            measured = pool.submit(self._measure)
            WorkerProcess(services).run()
            measured.result()

    def _measure(self) -> None:
        try:
            self._wait(lambda: "views" in {thread.name for thread in threading.enumerate()})
            idle = self._costs()
            with self._deployed.stack.ledger.transaction() as unit:
                jobs = {"jobs": self._queued + self._running, "wait": WAIT_SECONDS}
                unit.session.execute(FILL, jobs)
            self._wait(lambda: self._count(JobState.RUNNING) == self._running)
            self._wait(self._all_published)
            busy = self._costs()
            _print(idle, busy)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def _costs(self) -> Costs:
        """Of each round, and of these the median."""
        time.sleep(self._settle)
        rounds: list[Costs] = []
        for _ in range(self._rounds):
            began, before = time.monotonic(), self._used()
            time.sleep(self._seconds)
            took, used = time.monotonic() - began, self._used()
            rounds.append({name: (used[name] - before[name]) / took * 100 for name in used})
        return {name: median(costs[name] for costs in rounds) for name in rounds[0]}

    def _used(self) -> Costs:
        """Seconds of processor time since the start."""
        redis = self._deployed.stack.redis.info("cpu")
        return {
            **_threads(),
            POSTGRESQL: self._postgresql(),
            "Valkey": redis["used_cpu_user"] + redis["used_cpu_sys"],
        }

    def _postgresql(self) -> float:
        """Of the server and all its processes, also those that have ended."""
        with self._deployed.stack.ledger.transaction() as unit:
            backend = unit.session.scalar(text("SELECT pg_backend_pid()"))
        server = psutil.Process(backend).parent()
        if server is None:
            raise RuntimeError("PostgreSQL's server process is gone.")
        ended = server.cpu_times()
        times = [one.cpu_times() for one in (server, *server.children())]
        return ended.children_user + ended.children_system + sum(t.user + t.system for t in times)

    def _count(self, state: JobState) -> int:
        return self._deployed.counts().get(state, 0)

    def _all_published(self) -> bool:
        with self._deployed.stack.ledger.transaction() as unit:
            waiting = text("SELECT count(*) FROM jobs WHERE state = 'queued' AND rung_at IS NULL")
            return not unit.session.scalar(waiting)

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        wait_until(condition, 300.0)


def _threads() -> Costs:
    """Seconds of processor time that each of our threads has used."""
    used: Costs = dict.fromkeys((*UPKEEP, OTHERS), 0.0)
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    for task in Path("/proc/self/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        name = names.get(int(task.name), OTHERS)
        used[name if name in UPKEEP else OTHERS] += (int(fields[11]) + int(fields[12])) / TICKS
    return used


def _print(idle: Costs, busy: Costs) -> None:
    """Say each cost, and their sums."""
    say = sys.stdout.write
    say(f"{'percent of a processor':28}{'idle':>8}{'busy':>8}\n")
    for name in idle:
        say(f"{name:28}{idle[name]:8.2f}{busy[name]:8.2f}\n")
    for title, names in (("upkeep's threads", UPKEEP), ("with PostgreSQL", (*UPKEEP, POSTGRESQL))):
        sums = [sum(costs[name] for name in names) for costs in (idle, busy)]
        say(f"{title:28}{sums[0]:8.2f}{sums[1]:8.2f}\n")


if __name__ == "__main__":
    sys.exit(main())
