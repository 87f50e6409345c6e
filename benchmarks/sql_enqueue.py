"""Enqueueing in SQL from one connection, against stock Celery's `apply_async`, in one run.

Ours calls `promptstack.enqueue_generation` as a role that may do nothing else, by psycopg2 and with
fsync: a commit for each job, many jobs in one transaction, and many by one statement. Stock Celery
writes to Valkey on the same machine, with a result backend. A plain INSERT, each committed, shows
what a commit costs. Then a real worker hears of jobs, and
the time from the commit to its claim is measured. Run `python -m benchmarks.sql_enqueue --help`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from celery import Celery
from sqlalchemy import make_url, text

from promptstack.config.celery import kombu_url
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.services.audit.actor import Actor
from promptstack.tasks.composition import PromptStack

ROLE = "shop"
ENQUEUE = "SELECT promptstack.enqueue_generation(%s, provider => 'demo')"
ENQUEUE_ALL = (
    "SELECT promptstack.enqueue_generation(prompt, provider => 'demo') "
    "FROM unnest(%s) AS given (prompt)"
)
PLAIN = f"CREATE TABLE plain (prompt text); GRANT INSERT ON plain TO {ROLE}"
"""What a commit alone costs here: a row in a table without any index."""
WARM_UP = 50
REST_SECONDS = 0.2
"""Between two jobs whose way to the worker is measured: each rings by itself."""

Enqueue = Callable[[Sequence[str]], object]


def main() -> int:
    """Measure; print each round, medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2_000, help="jobs a round of each side")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--heard", type=int, default=50, help="jobs that a worker hears of")
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    given = parser.parse_args()
    with _servers() as (stack, stock), closing(_connect(stack)) as connection:
        ways = _ways(connection, stock)
        rounds = _rounds(ways, given.jobs, given.rounds)
        heard = _hear(stack, connection, given.heard)
    medians = {name: statistics.median(found) for name, found in rounds.items()}
    ratios = {name: median / medians["apply_async"] for name, median in medians.items()}
    if given.json:
        said = {"rounds": rounds, "medians": medians, "ratios": ratios, "heard_ms": heard}
        sys.stdout.write(f"{json.dumps(said)}\n")
        return 0
    for name, found in rounds.items():
        each = ", ".join(f"{speed:,.0f}" for speed in found)
        median = f"{medians[name]:9,.0f} jobs/s, {ratios[name]:.2f} times apply_async"
        sys.stdout.write(f"{name:20} {median} ({each})\n")
    sys.stdout.write(
        f"from the commit to the worker's claim: median {statistics.median(heard):.0f} ms, "
        f"most {max(heard):.0f} ms of {len(heard)}\n"
    )
    return 0


@contextmanager
def _servers() -> Iterator[tuple[PromptStack, Any]]:
    """A stack with the role that enqueues, and a task of stock Celery, on the same servers."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with EmbeddedServers(folder / "servers") as urls:
            os.environ |= {
                "DATABASE_URL": urls.database_url,
                "REDIS_URL": urls.redis_url,
                "PROMPTSTACK_STATE_DIR": str(folder / "state"),
            }
            broker = kombu_url(urls.redis_url)
            app = Celery("stock", broker=broker, backend=broker)

            @app.task(name="stock.generate")
            def stock(prompt: str) -> str:
                return prompt

            with PromptStack.open(load_settings(_env_file=None)) as stack:
                upgrade(stack.ledger.engine)
                with stack.ledger.transaction() as unit:
                    unit.session.execute(text(f"CREATE ROLE {ROLE} LOGIN"))
                    unit.session.execute(text(PLAIN))
                user = stack.users.create("shop@example.org")
                stack.sql_roles.grant(ROLE, user.id, by=Actor.command_line())
                yield stack, stock
    finally:
        remove(folder)


def _connect(stack: PromptStack) -> Any:
    url = make_url(stack.database_url)
    return psycopg2.connect(host=url.query["host"], port=5432, dbname=url.database, user=ROLE)


def _ways(connection: Any, stock: Any) -> dict[str, Enqueue]:
    cursor = connection.cursor()

    def one_by_one(prompts: Sequence[str]) -> None:
        connection.autocommit = True
        for prompt in prompts:
            cursor.execute(ENQUEUE, (prompt,))

    def one_transaction(prompts: Sequence[str]) -> None:
        connection.autocommit = False
        for prompt in prompts:
            cursor.execute(ENQUEUE, (prompt,))
        connection.commit()

    def one_statement(prompts: Sequence[str]) -> None:
        connection.autocommit = True
        cursor.execute(ENQUEUE_ALL, (list(prompts),))

    def apply(prompts: Sequence[str]) -> None:
        for prompt in prompts:
            stock.apply_async((prompt,))

    def plain(prompts: Sequence[str]) -> None:
        connection.autocommit = True
        for prompt in prompts:
            cursor.execute("INSERT INTO plain VALUES (%s)", (prompt,))

    return {
        "a commit each": one_by_one,
        "plain INSERT, commit": plain,
        "one transaction": one_transaction,
        "one statement": one_statement,
        "apply_async": apply,
    }


def _rounds(ways: dict[str, Enqueue], jobs: int, rounds: int) -> dict[str, list[float]]:
    """Jobs a second, in each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for enqueue in ways.values():
        enqueue(["Warm up."] * WARM_UP)
    for number in range(rounds):
        # Who goes first changes: the machine may get slower or faster meanwhile.
        for name in list(ways)[:: -1 if number % 2 else 1]:
            prompts = [f"Question {one}: what is a ledger?" for one in range(jobs)]
            began = time.perf_counter()
            ways[name](prompts)
            found[name].append(jobs / (time.perf_counter() - began))
    return found


def _hear(stack: PromptStack, connection: Any, jobs: int) -> list[float]:
    """Milliseconds from a job's commit to its claim, by a worker that never looks by itself."""
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("TRUNCATE jobs CASCADE"))
    stack.redis.flushdb()
    connection.autocommit = True
    environment = {**os.environ, "RECONCILE_SECONDS": "600"}
    command = [sys.executable, "-m", "promptstack.worker"]
    worker = subprocess.Popen(command, env=environment, stdout=sys.stderr)  # it prints a line
    try:
        took = []
        for _ in range(jobs + 1):
            with connection.cursor() as cursor:
                cursor.execute(ENQUEUE, ("Say hello.",))
                job_id = cursor.fetchone()[0]
                cursor.execute("SELECT clock_timestamp()")
                committed = cursor.fetchone()[0]
            [job] = stack.jobs.wait([job_id], timeout=60)
            took.append((job.started_at - committed).total_seconds() * 1_000)
            time.sleep(REST_SECONDS)
        return took[1:]  # at the first, the worker may have been starting
    finally:
        worker.terminate()
        worker.wait()


if __name__ == "__main__":
    sys.exit(main())
