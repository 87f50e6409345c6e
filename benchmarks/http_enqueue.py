"""Enqueueing over HTTP, beside stock Celery's `apply_async` with a result backend, in one run.

The API server is a process of its own, and this one is its client: 32 connections with a job a
request, and one connection with thousands a request. Ours commits each job to PostgreSQL, with
fsync, before it answers. Stock Celery is called in this process, on the same Valkey. No worker
runs. Run `python -m benchmarks.http_enqueue --help`.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from celery import Celery

from benchmarks.deployment import MODEL, ROOT, environment
from promptstack.config.celery import kombu_url
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.tasks.composition import PromptStack

API = "/api/v1"
Enqueue = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class Measured:
    """What one round of one side came to."""

    jobs_a_second: float
    milliseconds: float
    """Of the median request, or call."""
    server_us: float = 0.0
    """A job: the API server's time on a processor, which a busy machine doesn't lengthen much."""


@dataclass(frozen=True)
class Client:
    """Sends prebuilt requests to the server, on connections that it keeps open."""

    host: str
    port: int
    key: str
    pid: int
    """Of the server."""

    def request(self, path: str, body: Any) -> bytes:
        """A POST as it goes over the wire."""
        content = orjson.dumps(body)
        head = (
            f"POST {API}{path} HTTP/1.1\r\nHost: {self.host}\r\n"
            f"Authorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def send(self, requests: Sequence[bytes], connections: int) -> list[float]:
        """Send all of them, one after the other on each connection; how long each took."""
        return asyncio.run(self._send(list(reversed(requests)), connections))

    def server_seconds(self) -> float:
        """The server's time on a processor so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def _send(self, left: list[bytes], connections: int) -> list[float]:
        took: list[float] = []
        await asyncio.gather(*(self._one(left, took) for _ in range(connections)))
        return took

    async def _one(self, left: list[bytes], took: list[float]) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 26)
        while left:
            request, began = left.pop(), time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await reader.readexactly(length)
            took.append(time.perf_counter() - began)
            if b" 202 " not in head[:20]:
                raise SystemExit(f"The server has refused a request: {body[:500]!r}")
        writer.close()


def main() -> int:
    """Measure all ways in turn; print each round, medians, and ratios to stock."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=3_000, help="single jobs a round")
    parser.add_argument("--bulk", type=int, default=40_000, help="jobs a round in bulk")
    parser.add_argument("--at-once", type=int, default=10_000, help="jobs a request in bulk")
    parser.add_argument("--requests", type=int, default=2, help="requests at once in bulk")
    parser.add_argument("--connections", type=int, default=32, help="of single jobs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the result as JSON only")
    given = parser.parse_args()
    with _servers() as (client, stock):
        sides = _sides(client, stock, given)
        found: dict[str, list[Measured]] = {name: [] for name in sides}
        for measure in sides.values():
            measure(given.connections)
        for number in range(given.rounds):
            # Who goes first changes: the machine may get slower or faster meanwhile.
            for name in list(sides)[:: -1 if number % 2 else 1]:
                jobs = given.bulk if "bulk" in name else given.jobs
                found[name].append(sides[name](jobs))
    speeds = {
        name: statistics.median(one.jobs_a_second for one in rounds)
        for name, rounds in found.items()
    }
    if given.json:
        sys.stdout.write(json.dumps({name: list(map(vars, all_)) for name, all_ in found.items()}))
        return 0
    for name, rounds in found.items():
        each = ", ".join(f"{one.jobs_a_second:,.0f}" for one in rounds)
        slow = statistics.median(one.milliseconds for one in rounds)
        used = statistics.median(one.server_us for one in rounds)
        ratio = speeds[name] / speeds["stock, one by one"]
        sys.stdout.write(
            f"{name:<28} {speeds[name]:>9,.0f} jobs/s ({ratio:.2f} of stock), "
            f"median call {slow:.1f} ms, server {used:.0f} us of processor a job; rounds: {each}\n"
        )
    return 0


def _sides(
    client: Client, stock: Any, given: argparse.Namespace
) -> dict[str, Callable[[int], Measured]]:
    def singles(jobs: int) -> Measured:
        bodies = [client.request("/generations", entry) for entry in _entries(jobs)]
        return _measured(
            jobs, lambda: client.send(bodies, given.connections), client.server_seconds
        )

    def bulk(jobs: int) -> Measured:
        entries = _entries(jobs)
        bodies = [
            client.request("/jobs/bulk", {"jobs": entries[first : first + given.at_once]})
            for first in range(0, jobs, given.at_once)
        ]
        return _measured(jobs, lambda: client.send(bodies, given.requests), client.server_seconds)

    def apply(entry: dict[str, str]) -> float:
        began = time.perf_counter()
        stock.apply_async((entry["prompt"],))
        return time.perf_counter() - began

    def stock_alone(jobs: int) -> Measured:
        entries = _entries(jobs)
        return _measured(jobs, lambda: list(map(apply, entries)))

    def stock_threads(jobs: int) -> Measured:
        entries = _entries(jobs)
        with ThreadPoolExecutor(given.connections) as pool:
            return _measured(jobs, lambda: list(pool.map(apply, entries)))

    return {
        f"HTTP, {given.connections} connections": singles,
        f"HTTP, bulk of {given.at_once:,}": bulk,
        "stock, one by one": stock_alone,
        f"stock, {given.connections} threads": stock_threads,
    }


def _measured(
    jobs: int, send: Callable[[], list[float]], server_seconds: Callable[[], float] = lambda: 0.0
) -> Measured:
    began, before = time.perf_counter(), server_seconds()
    took = send()
    seconds, on_processor = time.perf_counter() - began, server_seconds() - before
    return Measured(jobs / seconds, statistics.median(took) * 1_000, on_processor / jobs * 1e6)


def _entries(jobs: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Question {number}: what is a ledger?", "provider": "openai", "model": MODEL}
        for number in range(jobs)
    ]


@contextmanager
def _servers() -> Iterator[tuple[Client, Any]]:
    """A client of a server that has started, and a task of stock Celery on the same Valkey."""
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    with ExitStack() as left:
        left.callback(remove, folder)
        urls = left.enter_context(EmbeddedServers(folder / "servers"))
        variables = {
            "DATABASE_URL": urls.database_url,
            "REDIS_URL": urls.redis_url,
            "PROMPTSTACK_STATE_DIR": str(folder / "state"),
            "OPENAI_API_KEY": "sk-benchmark",
        }
        yield _start(variables, left), _stock(kombu_url(urls.redis_url))


def _stock(broker: str) -> Any:
    app = Celery("stock", broker=broker, backend=broker)

    @app.task(name="stock.generate")
    def generate(prompt: str) -> str:
        return prompt

    return generate


def _start(variables: dict[str, str], left: ExitStack) -> Client:
    """Start the server, and make a key to it."""
    with environment(variables):
        settings = load_settings(_env_file=None)
    with PromptStack.open(settings) as stack:
        upgrade(stack.ledger.engine)
        key = stack.keys.create("benchmark@example.org", "benchmark")
    process = subprocess.Popen(
        [sys.executable, "-m", "promptstack.api.http", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    left.callback(process.wait)
    left.callback(process.terminate)
    said = process.stdout.readline() if process.stdout else b""
    url = urlsplit(json.loads(said)["url"])
    return Client(str(url.hostname), url.port or 0, key, process.pid)


if __name__ == "__main__":
    sys.exit(main())
