"""A deployment of Prompt Stack for one measurement: servers, simulator, workers, all processes."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import text

from promptstack.config.celery import kombu_url
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.tasks.composition import PromptStack

ROOT = Path(__file__).parents[1]
MODEL = "gpt-5-mini"
PROVIDER = f"""
[[providers]]
name = "openai"
wire = "openai"
generation_model = "{MODEL}"
embedding_model = "text-embedding-3-small"
prices_of = "openai"

"""
"""The simulator as the one provider: a worker does not load the SDKs of others."""


class Deployment:
    """Workers around one ledger, one Redis and one simulated provider."""

    def __init__(self, folder: Path, variables: dict[str, str], processes: ExitStack) -> None:
        self.folder = folder
        self.variables = variables
        self._processes = processes
        self.workers: list[subprocess.Popen[bytes]] = []
        with environment(variables):
            self.stack = PromptStack.open(load_settings(_env_file=None))
        processes.callback(self.stack.close)
        upgrade(self.stack.ledger.engine)

    def start_workers(self, count: int) -> None:
        """Start worker processes and wait until all are alive."""
        for number in range(count):
            log = (self.folder / f"worker-{number}.log").open("ab")
            worker = start(
                [sys.executable, "-m", "promptstack.worker"], self.variables, self._processes, log
            )
            self.workers.append(worker)
        wait_until(lambda: self._alive() == count, 180.0)

    def enqueue(self, count: int, prompt: Callable[[int], str], **how: Any) -> None:
        """Accept `count` generations, some hundred a transaction."""
        for first in range(0, count, 500):
            with self.stack.ledger.transaction() as unit:
                for number in range(first, min(first + 500, count)):
                    self.stack.jobs.enqueue_generation(
                        prompt(number),
                        provider="openai",
                        model=MODEL,
                        session=unit.session,
                        **how,
                    )

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        with self.stack.ledger.transaction() as unit:
            rows = unit.session.execute(text("SELECT state, count(*) FROM jobs GROUP BY state"))
            return dict(rows.tuples().all())

    def wait_until_done(self, seconds: float) -> float:
        """Wait until no job is open; how long that took. Raises `TimeoutError`."""
        began = time.monotonic()

        def is_done() -> bool:
            with self.stack.ledger.transaction() as unit:
                return not unit.jobs.count_open()

        wait_until(is_done, seconds)
        return time.monotonic() - began

    def _alive(self) -> int:
        with self.stack.ledger.transaction() as unit:
            return unit.workers.count_alive(15.0)


@contextmanager
def deployment(
    simulator_url: str, models: str, durable: bool = False, /, **variables: str
) -> Iterator[Deployment]:
    """Start servers of our own and open a stack on them; everything ends with the context."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    models_file = folder / "models.toml"
    models_file.write_text(PROVIDER + models)
    try:
        with ExitStack() as processes, EmbeddedServers(folder / "servers", durable=durable) as urls:
            settings = {
                "DATABASE_URL": urls.database_url,
                "REDIS_URL": urls.redis_url,
                "OPENAI_BASE_URL": simulator_url,
                "OPENAI_API_KEY": "sk-benchmark",
                "MODELS_FILE": str(models_file),
                "PROMPTSTACK_STATE_DIR": str(folder / "state"),
                **variables,
            }
            if settings["REDIS_URL"] != urls.redis_url:
                settings["CELERY_BROKER_URL"] = kombu_url(urls.redis_url)
            with processes:
                yield Deployment(folder, settings, processes)
    finally:
        remove(folder)


def start(
    command: list[str], variables: dict[str, str], processes: ExitStack, log: Any
) -> subprocess.Popen[bytes]:
    """Start a process that ends with `processes`."""
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **variables}, stdout=log, stderr=log
    )

    def end() -> None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if hasattr(log, "close"):
            log.close()

    processes.callback(end)
    return process


def wait_until(condition: Callable[[], bool], seconds: float, *, pause: float = 0.1) -> None:
    """Wait until it holds. Raises `TimeoutError`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(pause)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Have these variables for a while."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
