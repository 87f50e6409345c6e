"""Enqueueing, ours against stock Celery's `apply_async` with a result backend, in one run.

Both use the same Valkey. Ours also commits each job to PostgreSQL, with fsync. No worker runs: only
what the caller waits for is measured. Run `python -m benchmarks.enqueue --help`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from promptstack.config.celery import kombu_url
from promptstack.config.names import Queue
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.services.jobs.checks import JobChecks
from promptstack.services.jobs.intake import JobIntake
from promptstack.services.jobs.publishing import JobMessage
from promptstack.services.llm.request_bounds import RequestBounds
from promptstack.tasks import from_settings
from promptstack.tasks.composition import PromptStack

MODEL = "gpt-5-mini"
AT_ONCE = 500
WARM_UP = 50

Enqueue = Callable[[Sequence[str]], object]


@dataclass(frozen=True)
class Measured:
    """What one round of one side came to."""

    jobs_a_second: float
    cpu_us: float
    """Of the caller's process, a job."""


@dataclass(frozen=True)
class Way:
    """A way to enqueue: how each side is called, and with how many jobs at a time."""

    ours: Enqueue
    stock: Enqueue
    threads: int = 1
    at_once: int = 1


def main() -> int:
    """Measure all ways, both sides in turn; print each round, medians, spread and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="jobs a round of each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    given = parser.parse_args()
    with _servers() as (stack, stock):
        ways = _ways(stack, stock, given.threads)
        found = {name: _rounds(way, given.jobs, given.rounds) for name, way in ways.items()}
        parts = _parts(stack, given.jobs)
    if given.json:
        rounds = {
            name: {side: list(map(asdict, all_)) for side, all_ in sides.items()}
            for name, sides in found.items()
        }
        ratios = {name: _ratio(sides) for name, sides in found.items()}
        sys.stdout.write(f"{json.dumps({'rounds': rounds, 'ratios': ratios, 'parts': parts})}\n")
        return 0
    for name, sides in found.items():
        _show(name, sides)
    sys.stdout.write("\nwhere ours spends it, one by one, medians in us: ")
    sys.stdout.write(", ".join(f"{part} {us:.0f}" for part, us in parts.items()) + "\n")
    return 0


@contextmanager
def _servers() -> Iterator[tuple[PromptStack, Any]]:
    """A stack and a task of stock Celery, on the same servers."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with EmbeddedServers(folder / "servers") as urls:
            os.environ |= {
                "DATABASE_URL": urls.database_url,
                "REDIS_URL": urls.redis_url,
                "PROMPTSTACK_STATE_DIR": str(folder / "state"),
                "OPENAI_API_KEY": "sk-benchmark",
            }
            broker = kombu_url(urls.redis_url)
            app = Celery("stock", broker=broker, backend=broker)

            @app.task(name="stock.generate")
            def stock(prompt: str) -> str:
                return prompt

            with PromptStack.open(load_settings(_env_file=None)) as stack:
                upgrade(stack.ledger.engine)
                yield stack, stock
    finally:
        remove(folder)


def _ways(stack: PromptStack, stock: Any, threads: int) -> dict[str, Way]:
    def one(prompts: Sequence[str]) -> None:
        for prompt in prompts:
            stack.jobs.enqueue_generation(prompt, provider="openai", model=MODEL)

    def many(prompts: Sequence[str]) -> None:
        stack.jobs.enqueue_many(
            [{"prompt": prompt, "provider": "openai", "model": MODEL} for prompt in prompts]
        )

    def apply(prompts: Sequence[str]) -> None:
        for prompt in prompts:
            stock.apply_async((prompt,))

    return {
        "one by one": Way(one, apply),
        f"{threads} threads": Way(one, apply, threads=threads),
        f"{AT_ONCE} at once": Way(many, apply, at_once=AT_ONCE),
    }


def _rounds(way: Way, jobs: int, rounds: int) -> dict[str, list[Measured]]:
    sides = {"ours": way.ours, "stock": way.stock}
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    for enqueue in sides.values():
        _measure(enqueue, way, WARM_UP)
    for number in range(rounds):
        # Who goes first changes: the machine may get slower or faster meanwhile.
        for name in list(sides)[:: -1 if number % 2 else 1]:
            found[name].append(_measure(sides[name], way, jobs))
    return found


def _measure(enqueue: Enqueue, way: Way, jobs: int) -> Measured:
    prompts = [f"Question {number}: what is a ledger?" for number in range(jobs)]
    calls = [prompts[first : first + way.at_once] for first in range(0, jobs, way.at_once)]
    with ThreadPoolExecutor(way.threads) as pool:
        list(pool.map(time.sleep, [0.01] * way.threads))  # starts the threads
        began, cpu = time.perf_counter(), time.process_time()
        if way.threads == 1:
            for call in calls:
                enqueue(call)
        else:
            list(pool.map(enqueue, calls))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Measured(jobs / seconds, cpu / jobs * 1e6)


def _parts(stack: PromptStack, jobs: int) -> dict[str, float]:
    """Where the time of one job goes: its parts, each done by itself."""
    defaults = from_settings.job_defaults(stack.settings, RequestBounds())
    checks = JobChecks(stack.ledger, stack.factory, defaults)
    intake = JobIntake(stack.ledger, stack.publisher, defaults, stack.bulk_jobs.after_enqueue)
    silent = JobIntake(stack.ledger, Silent(), defaults, stack.bulk_jobs.after_enqueue)
    entry = {"prompt": "What is a ledger?", "provider": "openai", "model": MODEL}
    made = [checks.generation(entry) for _ in range(2 * jobs)]
    message = JobMessage(made[0].id, made[0].kind, made[0].queue, "openai", MODEL)
    parts: dict[str, Callable[[int], object]] = {
        "check": lambda _: checks.generation(entry),
        "store": lambda number: silent.accept(made[number]),
        "publish": lambda _: stack.publisher.publish([message]),
        "all but the check": lambda number: intake.accept(made[jobs + number]),
    }
    return {name: _median_us(part, jobs) for name, part in parts.items()}


class Silent:
    """A publisher that sends nothing."""

    def epoch(self, max_age: float = 0.0) -> str:
        return "epoch"

    def uptime(self) -> float | None:
        return None

    def publish(self, messages: Sequence[JobMessage]) -> str:
        return "epoch"

    def publish_all(self, messages: Sequence[JobMessage]) -> None: ...

    def waiting(self, queue: Queue) -> int:
        return 0


def _median_us(part: Callable[[int], object], times: int) -> float:
    took = []
    for number in range(times):
        began = time.perf_counter()
        part(number)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e6


def _ratio(sides: dict[str, list[Measured]]) -> float:
    ours, stock = ([one.jobs_a_second for one in sides[name]] for name in ("ours", "stock"))
    return statistics.median(ours) / statistics.median(stock)


def _show(name: str, sides: dict[str, list[Measured]]) -> None:
    sys.stdout.write(f"\n{name}: ours / stock = {_ratio(sides):.2f}\n")
    for side, rounds in sides.items():
        rates = [one.jobs_a_second for one in rounds]
        median, cpu = statistics.median(rates), statistics.median(one.cpu_us for one in rounds)
        sys.stdout.write(
            f"  {side:<6} median {median:8,.0f} a second, {min(rates):,.0f} to {max(rates):,.0f}; "
            f"{1e6 / median:6.0f} us a job, {cpu:.0f} us of CPU in the caller; rounds: "
            f"{', '.join(f'{rate:,.0f}' for rate in rates)}\n"
        )


if __name__ == "__main__":
    sys.exit(main())
