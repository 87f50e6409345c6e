"""What a direct call costs beside calling the provider: OpenAI's own client, unchanged.

It asks the simulator itself, and the simulator through our door with one worker, call by call in
turns. Run `python -m benchmarks.direct_calls --help`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from statistics import median, quantiles
from typing import Any

import openai

from benchmarks.deployment import MODEL, ROOT, Deployment, deployment
from promptstack.simulator.process import SimulatorProcess

WARM_UP = 20
Clients = dict[str, openai.AsyncOpenAI]


def main() -> int:
    """Print the medians of both ways, and what lies between them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="of each way, at each width")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--latency", type=float, default=0.2, help="of the provider, in seconds")
    parser.add_argument("--modes", nargs="+", default=["whole", "stream"])
    parser.add_argument("--fast-commits", action="store_true", help="PostgreSQL without fsync")
    given = parser.parse_args()
    with (
        SimulatorProcess(latency=given.latency) as simulator,
        deployment(simulator.url, "", not given.fast_commits, WORKER_CONCURRENCY="32") as deployed,
    ):
        simulator.set_limits(requests_per_minute=10**9, tokens_per_minute=10**12)
        deployed.start_workers(1)
        with _door(deployed) as (url, key):
            asyncio.run(_measure(given, simulator.url, url, key))
    return 0


async def _measure(given: argparse.Namespace, provider: str, door: str, key: str) -> None:
    clients: Clients = {
        "provider": openai.AsyncOpenAI(base_url=provider, api_key="sk-x", max_retries=0),
        "door": openai.AsyncOpenAI(base_url=door, api_key=key, max_retries=0),
    }
    for mode in given.modes:
        ask = _whole if mode == "whole" else _stream
        for at_once in given.at_once:
            for client in clients.values():
                await _round(ask, client, max(at_once, WARM_UP), at_once)
            times: dict[str, list[float]] = {name: [] for name in clients}
            while len(times["door"]) < given.calls:
                for name, client in clients.items():
                    times[name] += await _round(ask, client, at_once, at_once)
            _show(mode, at_once, times)
    for client in clients.values():
        await client.close()


async def _round(
    ask: Callable[[openai.AsyncOpenAI, int], Coroutine[Any, Any, float]],
    client: openai.AsyncOpenAI,
    calls: int,
    at_once: int,
) -> list[float]:
    left = iter(range(calls))

    async def work() -> list[float]:
        return [await ask(client, number) for number in left]

    return list(chain(*await asyncio.gather(*(work() for _ in range(at_once)))))


async def _whole(client: openai.AsyncOpenAI, number: int) -> float:
    """The seconds of a call."""
    began = time.perf_counter()
    await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": f"Why is {number}?"}]
    )
    return time.perf_counter() - began


async def _stream(client: openai.AsyncOpenAI, number: int) -> float:
    """The seconds to the first text; the rest is read too."""
    began, first = time.perf_counter(), 0.0
    stream = await client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": f"Why is {number}?"}], stream=True
    )
    async for chunk in stream:
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return first


def _show(mode: str, at_once: int, times: dict[str, list[float]]) -> None:
    what = "the answer" if mode == "whole" else "the first text"
    found = {name: [1_000 * one for one in taken] for name, taken in times.items()}
    middle = {name: median(taken) for name, taken in found.items()}
    late = {name: quantiles(taken, n=20)[-1] for name, taken in found.items()}
    more = [one["door"] - one["provider"] for one in (middle, late)]
    sys.stdout.write(
        f"{at_once:3} at once, {mode:6}: {what} after {middle['provider']:6.1f} ms from the "
        f"provider, {middle['door']:6.1f} ms from the door: {more[0]:5.1f} ms more at the median, "
        f"{more[1]:5.1f} ms at 95%\n"
    )
    sys.stdout.flush()


@contextmanager
def _door(deployed: Deployment) -> Iterator[tuple[str, str]]:
    """The HTTP API in a process of its own, and a key."""
    key = deployed.stack.keys.create("benchmark@example.org", "benchmark")
    with ExitStack() as left:
        server = subprocess.Popen(
            [sys.executable, "-m", "promptstack.api.http", "--port", "0"],
            cwd=ROOT,
            env={**os.environ, **deployed.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        left.callback(server.wait)
        left.callback(server.terminate)
        said = server.stdout.readline() if server.stdout else b""
        yield json.loads(said)["url"] + "/openai/v1", key


if __name__ == "__main__":
    sys.exit(main())
