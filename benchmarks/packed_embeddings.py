"""What packing small embeddings calls together brings, and what a call costs beside the provider's.

Clients with one text each ask for vectors by `/openai/v1/embeddings`: of the simulator itself, of
our door, and of our door where each call has a job of its own. Run
`python -m benchmarks.packed_embeddings --help`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from statistics import median

import aiohttp

from benchmarks.deployment import ROOT, Deployment, deployment
from promptstack.simulator.process import SimulatorProcess

MODEL = "text-embedding-3-small"
WARM_UP = 30
WAYS = {"packed": "0.005", "each alone": "0"}


def main() -> int:
    """Print provider calls a text, calls a second and the median latency of each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--calls", type=int, default=20, help="of each client; a lone one: 5 times")
    parser.add_argument("--latency", type=float, default=0.05, help="of the provider, in seconds")
    given = parser.parse_args()
    with (
        SimulatorProcess(latency=given.latency) as simulator,
        deployment(simulator.url, "", WORKER_CONCURRENCY="64") as deployed,
        ExitStack() as doors,
    ):
        simulator.set_limits(requests_per_minute=10**9, tokens_per_minute=10**12)
        deployed.start_workers(1)
        key = deployed.stack.keys.create("benchmark@example.org", "benchmark")
        ways = {"provider": (simulator.url, "sk-x")}
        for way, seconds in WAYS.items():
            ways[way] = (doors.enter_context(_door(deployed, seconds)), key)
        asyncio.run(_measure(given, simulator, ways))
    return 0


async def _measure(
    given: argparse.Namespace, simulator: SimulatorProcess, ways: dict[str, tuple[str, str]]
) -> None:
    numbers = count()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for clients in given.clients:
            for way, (url, key) in ways.items():
                ask = partial(_ask, session, url, key, numbers)
                await _ask_all(ask, clients, max(1, WARM_UP // clients))
                before = simulator.stats()["requests"]
                began = time.perf_counter()
                calls = given.calls * (5 if clients == 1 else 1)
                times = await _ask_all(ask, clients, calls)
                took = time.perf_counter() - began
                asked = simulator.stats()["requests"] - before
                sys.stdout.write(
                    f"{clients:3} clients, {way:10}: {asked / len(times):5.2f} provider calls a "
                    f"text, {len(times) / took:6.1f} calls a second, "
                    f"{1_000 * median(times):6.1f} ms at the median\n"
                )
                sys.stdout.flush()


async def _ask_all(ask: Callable[[], Awaitable[float]], clients: int, calls: int) -> list[float]:
    """Let clients ask, each call after call; the seconds of each."""

    async def work() -> list[float]:
        return [await ask() for _ in range(calls)]

    found = await asyncio.gather(*(work() for _ in range(clients)))
    return [one for times in found for one in times]


async def _ask(session: aiohttp.ClientSession, url: str, key: str, numbers: Iterator[int]) -> float:
    """Ask for the vector of a text that nobody has asked for; the seconds of the call."""
    body = {"model": MODEL, "input": f"Text {next(numbers)}.", "encoding_format": "base64"}
    headers = {"Authorization": f"Bearer {key}"}
    began = time.perf_counter()
    async with session.post(f"{url}/embeddings", json=body, headers=headers) as answer:
        said = await answer.json()
        if answer.status != 200:
            raise RuntimeError(said)
    return time.perf_counter() - began


@contextmanager
def _door(deployed: Deployment, gather_seconds: str) -> Iterator[str]:
    """The HTTP API in a process of its own."""
    with ExitStack() as left:
        server = subprocess.Popen(
            [sys.executable, "-m", "promptstack.api.http", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **deployed.variables, "VECTORS_GATHER_SECONDS": gather_seconds},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        left.callback(server.wait)
        left.callback(server.terminate)
        said = server.stdout.readline() if server.stdout else b""
        yield json.loads(said)["url"] + "/openai/v1"


if __name__ == "__main__":
    sys.exit(main())
