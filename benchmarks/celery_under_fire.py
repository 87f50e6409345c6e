"""Stock Celery over Redis under the faults of `make chaos`: what it loses, and what it pays twice.

It has no database, so the faults of PostgreSQL are left out. A task counts as lost when the
provider was never asked for it, or when its answer can't be read.

    make chaos CHAOS="--against celery"
"""

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import redis
from celery.exceptions import CeleryError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from promptstack.chaos.driver import Driver
from promptstack.chaos.local_deployment import LATENCY_SECONDS, MODEL, SLOTS, WORKERS, acts_on_all
from promptstack.chaos.plan import Fault, draw
from promptstack.chaos.servers import Servers
from promptstack.chaos.workers import Command, LocalWorkers
from promptstack.config.celery import kombu_url
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.process import SimulatorProcess

APP = "benchmarks.celery_under_fire_app"
SLICE = 1_000
IDLE_SECONDS = 45.0
"""Without a new bill for so long, longer than its visibility time-out, nothing more will come."""
NO_DATABASE = frozenset(
    {Fault.POSTGRES_KILL, Fault.POSTGRES_RESTART, Fault.POSTGRES_FULL, Fault.CUT}
)
BROKER_ERRORS = (OperationalError, RedisError, CeleryError, OSError)


STOCK = Command(
    lambda processes: (
        *(sys.executable, "-m", "promptstack.chaos.keep", str(processes)),
        *(sys.executable, "-m", "celery", "-A", f"{APP}:app", "worker", "--loglevel", "INFO"),
        *("--pool", "threads", "--concurrency", str(SLOTS)),
    ),
    re.compile(r"\[(?P<pid>\d+)\] \S+ ready\."),
)


@dataclass(frozen=True)
class StockScore:
    """What became of the load of stock Celery."""

    faults: dict[Fault, int]
    accepted: int
    never_asked: int
    answers_gone: int
    billed: int
    billed_twice: int
    seconds: float

    passed = True
    """A comparison: nothing is asked of it."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "faults": {str(name): count for name, count in self.faults.items()}}

    def lines(self) -> list[str]:
        """For a person."""
        done = ", ".join(f"{count} {fault}" for fault, count in self.faults.items() if count)
        return [
            f"stock Celery, {self.seconds:.0f} s; faults: {done}",
            f"tasks accepted                  {self.accepted:>8,}",
            f"lost: provider never asked      {self.never_asked:>8,}",
            f"lost: answered, and no result   {self.answers_gone:>8,}",
            f"calls billed                    {self.billed:>8,}",
            f"billed twice                    {self.billed_twice:>8,}",
        ]


def run(
    *, seed: int, jobs: int, seconds: float, kills: int, times: int, folder: Path
) -> StockScore:
    """Run the same load under the same plan."""
    began = time.monotonic()
    plan = [
        planned
        for planned in draw(seed, seconds, kills=kills, times=times)
        if planned.fault not in NO_DATABASE
    ]
    with ExitStack() as opened:
        provider = opened.enter_context(SimulatorProcess())
        provider.set_latency(LATENCY_SECONDS, spread=0.5)
        servers = Servers(Path(tempfile.mkdtemp(prefix="promptstack-chaos-")))
        opened.callback(servers.stop)
        servers.start()
        direct, by_line = map(kombu_url, (servers.redis_url, servers.redis_url_by_line))
        environment = _environment(direct, provider)
        groups = [(environment, WORKERS - 1), (_environment(by_line, provider), 1)]
        workers = LocalWorkers(groups, folder, STOCK)
        opened.callback(workers.stop)
        workers.wait_until_ready()
        app = _app(environment)
        driver = Driver(acts_on_all(servers, workers, provider))
        faults = threading.Thread(target=driver.run, args=(plan,), name="driver")
        faults.start()
        sent = _send(app, jobs, seconds * 0.9, f"chaos {seed}")
        faults.join()
        books = _settled(provider, len(sent))
        by_key = {task.id: books.get(key, 0) for task, key in sent}
        billed = sum(by_key.values())
        asked = [task for task, _ in sent if by_key[task.id]]
        return StockScore(
            faults=driver.counts(),
            accepted=len(sent),
            never_asked=len(sent) - len(asked),
            answers_gone=len(asked) - _stored(servers.redis_url, [task.id for task in asked]),
            billed=billed,
            billed_twice=billed - len(asked),
            seconds=time.monotonic() - began,
        )


def _environment(url: str, provider: SimulatorProcess) -> dict[str, str]:
    return {
        "RIVAL_BROKER": url,
        "RIVAL_BACKEND": url,
        "OPENAI_API_KEY": "sk-chaos",
        "OPENAI_BASE_URL": provider.url,
    }


def _app(environment: dict[str, str]) -> Any:
    # It reads them when it is imported, as stock Celery apps do.
    os.environ.update(environment)
    module = import_module(APP)
    # It only sends: else each task sent would subscribe to its result.
    module.app.conf.result_backend = None
    return module


def _send(app: Any, jobs: int, seconds: float, name: str) -> list[tuple[Any, str]]:
    """Send the load at an even rate, each task until it is accepted."""
    sent: list[tuple[Any, str]] = []
    began = time.monotonic()
    for number in range(jobs):
        time.sleep(max(0.0, began + seconds * number / jobs - time.monotonic()))
        marker = f"{name} {number:06d}."
        while True:
            with suppress(*BROKER_ERRORS):
                task = app.generate.apply_async((marker, MODEL), retry=False)
                break
            time.sleep(0.2)
        sent.append((task, billing_key("/v1/chat/completions", MODEL, marker)))
        if number % 1_000 == 999:
            _say(f"{time.monotonic() - began:4.0f} s: {number + 1:,} tasks accepted")
    return sent


def _settled(provider: SimulatorProcess, expected: int) -> dict[str, int]:
    """Wait until every task was billed, or nothing more comes; the provider's books."""
    books = provider.ledger()
    last_news = time.monotonic()
    while len(books) < expected and time.monotonic() - last_news < IDLE_SECONDS:
        time.sleep(1.0)
        newer = provider.ledger()
        if sum(newer.values()) > sum(books.values()):
            last_news = time.monotonic()
        books = newer
    _say(f"{len(books):,} of {expected:,} were asked of the provider")
    return books


def _stored(redis_url: str, ids: Sequence[str]) -> int:
    """How many of these tasks have a result; past Celery's reader, which may have given up."""
    found = 0
    with redis.Redis.from_url(redis_url) as client:
        for first in range(0, len(ids), SLICE):
            keys = [f"celery-task-meta-{id_}" for id_ in ids[first : first + SLICE]]
            found += sum(value is not None for value in client.mget(keys))
    return found


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
