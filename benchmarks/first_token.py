"""How long a text takes from the provider to its reader, beyond the provider's own time.

The provider of this benchmark sends the time of day as its pieces. So each piece tells its reader
how old it is: by the worker, Redis and a reader in Python, or over HTTP as events. Run
`python -m benchmarks.first_token --help`.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median, quantiles
from typing import Any

import aiohttp
from aiohttp import web

from benchmarks.deployment import MODEL, ROOT, Deployment, deployment, environment
from promptstack.config.settings import load_settings
from promptstack.services.streams.pieces import Piece
from promptstack.tasks.composition import PromptStack

API = "/api/v1"
Ages = dict[str, list[float]]
"""Of each job, how old its pieces were when they came, in seconds."""


def main() -> int:
    """Print how old first and later pieces are at each reader."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=50, help="at once")
    parser.add_argument("--pieces", type=int, default=60, help="of each text")
    parser.add_argument("--first", type=float, default=1.0, help="seconds to the first piece")
    parser.add_argument("--pace", type=float, default=0.05, help="seconds between two pieces")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--readers", nargs="+", default=["python", "sse"])
    parser.add_argument("--provider", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.provider:
        asyncio.run(_serve(given.pieces, given.first, given.pace))
        return 0
    with _provider(given) as url, deployment(url, "", WORKER_CONCURRENCY="200") as deployed:
        deployed.start_workers(1)
        with ExitStack() as left:
            readers: dict[str, Callable[[int], Ages]] = {
                "python": lambda streams: _read(deployed.stack, streams)
            }
            if "sse" in given.readers:
                client = _Client(deployed, left)
                readers["sse"] = lambda streams: asyncio.run(client.read(streams))
            for name in given.readers:
                readers[name](given.streams)  # connections are opened, code is loaded
                for _ in range(given.rounds):
                    _show(name, readers[name](given.streams))
    return 0


def _show(name: str, ages: Ages) -> None:
    """Print one line."""
    firsts = [found[0] * 1_000 for found in ages.values() if found]
    later = [age * 1_000 for found in ages.values() for age in found[1:]]
    if len(firsts) < len(ages):
        sys.stdout.write(f"{name:8} {len(ages) - len(firsts)} texts did not come\n")
    if firsts and later:
        sys.stdout.write(
            f"{name:8} {len(firsts)} streams: first piece {median(firsts):5.1f} ms at the median, "
            f"{quantiles(firsts, n=20)[-1]:5.1f} at 95%; later {median(later):5.1f} ms, "
            f"{quantiles(later, n=20)[-1]:5.1f} at 95%\n"
        )
    sys.stdout.flush()


def _note(ages: Ages, job: str, text: str) -> None:
    """Note how old the oldest of the joined pieces is."""
    times = text.split()
    if times:
        ages[job].append(time.time() - float(times[0]))


def _read(stack: PromptStack, streams: int) -> Ages:
    """Read all texts in one thread, as a process with many watchers does."""
    jobs = [
        stack.jobs.enqueue_generation(f"Text {n}", provider="openai", model=MODEL, stream=True)
        for n in range(streams)
    ]
    ages: Ages = {str(job.id): [] for job in jobs}
    positions = {job.id: "0" for job in jobs}
    while positions:
        for job_id, pieces in stack.text_streams.read(positions, 1.0).items():
            _take(ages, str(job_id), pieces)
            positions[job_id] = pieces[-1].position
            if pieces[-1].kind == "end":
                del positions[job_id]
    return ages


def _take(ages: Ages, job: str, pieces: list[Piece]) -> None:
    for piece in pieces:
        _note(ages, job, piece.text)


class _Client:
    """Reads texts as events over HTTP, each by a connection of its own."""

    def __init__(self, deployed: Deployment, left: ExitStack) -> None:
        with environment(deployed.variables):
            settings = load_settings(_env_file=None)
        with PromptStack.open(settings) as stack:
            self._key = stack.keys.create("benchmark@example.org", "benchmark")
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
        self._url = json.loads(said)["url"] + API

    async def read(self, streams: int) -> Ages:
        """Enqueue and read so many."""
        ages: Ages = {}
        headers = {"Authorization": f"Bearer {self._key}"}
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
            await asyncio.gather(*(self._read(session, n, ages) for n in range(streams)))
        return ages

    async def _read(self, session: aiohttp.ClientSession, number: int, ages: Ages) -> None:
        body = {"prompt": f"Text {number}", "provider": "openai", "model": MODEL, "stream": True}
        async with session.post(f"{self._url}/generations", json=body) as answer:
            job = (await answer.json())["id"]
        ages[job] = []
        event = ""
        async with session.get(f"{self._url}/jobs/{job}/events") as answer:
            async for line in answer.content:
                name, _, value = line.decode().rstrip().partition(": ")
                if name == "event":
                    event = value
                elif name == "data" and event == "text":
                    _note(ages, job, json.loads(value)["text"])
                elif name == "data" and event == "end":
                    return


@contextmanager
def _provider(given: argparse.Namespace) -> Iterator[str]:
    """The provider of this benchmark, in a process of its own."""
    options = {"--pieces": given.pieces, "--first": given.first, "--pace": given.pace}
    command = [sys.executable, "-m", "benchmarks.first_token", "--provider"]
    for name, value in options.items():
        command += [name, str(value)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


async def _serve(pieces: int, first: float, pace: float) -> None:
    """Answer chat completions with the time of day, piece by piece."""

    def data(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return f"data: {json.dumps({'model': MODEL, 'choices': [choice]})}\n\n".encode()

    async def chat(request: web.Request) -> web.StreamResponse:
        await request.read()
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        await asyncio.sleep(first)
        for number in range(pieces):
            if number:
                await asyncio.sleep(pace)
            await answer.write(data({"content": f"{time.time():.6f} "}))
        await answer.write(data({}, "stop"))
        usage = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": pieces}}
        await answer.write(f"data: {json.dumps(usage)}\n\ndata: [DONE]\n\n".encode())
        return answer

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    sys.stdout.write(f"http://127.0.0.1:{runner.addresses[0][1]}/v1\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
