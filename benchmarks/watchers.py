"""Many who watch one run by its events while the server is restarted once under them.

It counts the ends that they get, and how much memory the server takes for them. Run
`python -m benchmarks.watchers --help`. Ends with code 1 where an end is lost.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from benchmarks.deployment import ROOT, Deployment, deployment, environment
from promptstack.config.settings import load_settings
from promptstack.tasks.composition import PromptStack

RETRY_SECONDS = 0.5
LOST_SECONDS = 60.0
"""After the end of the run, how long its watchers have to hear of it."""


def main() -> int:
    """Print what watchers got and what they cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--watchers", type=int, default=1_000)
    parser.add_argument("--items", type=int, default=2_000, help="of the run")
    given = parser.parse_args()
    most = str(given.watchers + 10)
    bounds = {"MAX_WATCHERS": most, "MAX_WATCHERS_OF_USER": most, "MAX_CONNECTIONS": "5000"}
    with deployment("http://127.0.0.1:1/v1", "", **bounds) as deployed:
        said = asyncio.run(_measure(deployed, given.watchers, given.items))
    sys.stdout.write(json.dumps(said, indent=1) + "\n")
    return 0 if said["ends"] == given.watchers else 1


class Server:
    """The HTTP API in a process of its own, on a port that it has again after a restart."""

    def __init__(self, variables: dict[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/api/v1"
        self._variables = variables
        self._process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "promptstack.api.http", "--port", str(self._port)]
        with environment(self._variables):
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        if process.stdout is not None:
            process.stdout.readline()  # it listens
        return process

    def megabytes(self) -> float:
        """The memory that it holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
        return int(line.split()[1]) / 1_000

    def stop(self) -> float:
        """End it in order; how long that took."""
        began = time.monotonic()
        self._process.terminate()
        self._process.wait(60)
        return time.monotonic() - began

    def restart(self) -> float:
        """End it and start it again; how long it took to end."""
        took = self.stop()
        self._process = self._start()
        return took


class Watchers:
    """Clients that each watch a run by a connection of their own, as browsers do."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {key}"}
        self.open = 0
        self.events = 0
        self.reconnects = 0
        self.ended_at: list[float] = []

    async def watch(self, run_id: str, count: int) -> None:
        """Watch until all have the end."""
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            headers=self._headers, timeout=timeout, connector=connector
        ) as session:
            await asyncio.gather(*(self._one(session, run_id) for _ in range(count)))

    async def _one(self, session: aiohttp.ClientSession, run_id: str) -> None:
        last = ""
        while True:
            with suppress(aiohttp.ClientError, OSError):
                headers = {"Last-Event-ID": last} if last else {}
                async with session.get(
                    f"{self._url}/runs/{run_id}/events", headers=headers
                ) as answer:
                    answer.raise_for_status()
                    self.open += 1
                    try:
                        async for line in answer.content:
                            name, _, value = line.decode().rstrip().partition(": ")
                            if name == "id":
                                last = value
                                self.events += 1
                            if (name, value) == ("event", "end"):
                                self.ended_at.append(time.monotonic())
                                return
                    finally:
                        self.open -= 1
            self.reconnects += 1
            await asyncio.sleep(RETRY_SECONDS)


async def _measure(deployed: Deployment, count: int, items: int) -> dict[str, Any]:
    with environment(deployed.variables):
        settings = load_settings(_env_file=None)
    with PromptStack.open(settings) as stack:
        key = stack.keys.create("benchmark@example.org", "benchmark")
        user_id = stack.keys.authenticate(key).user_id
        run = stack.runs.generate(
            [f"Item {number}" for number in range(items)], provider="demo", user_id=user_id
        )
        server = await asyncio.to_thread(Server, deployed.variables)
        watchers = Watchers(server.url, key)
        idle = server.megabytes()
        watching = asyncio.create_task(watchers.watch(str(run.id), count))
        await _until(lambda: watchers.open == count)
        opened = server.megabytes()
        await asyncio.to_thread(deployed.start_workers, 1)
        await _until(lambda: watchers.events > 3 * count or watching.done())
        running = server.megabytes()
        stopped = await asyncio.to_thread(server.restart)
        ended = await asyncio.to_thread(stack.runs.wait, run.id)
        ended_at = time.monotonic()
        with suppress(TimeoutError):
            await asyncio.wait_for(watching, LOST_SECONDS)
        after = server.megabytes()
        await asyncio.to_thread(server.stop)
    late = [at - ended_at for at in watchers.ended_at]
    return {
        "watchers": count,
        "run": str(ended.state),
        "ends": len(watchers.ended_at),
        "events": watchers.events,
        "connected_again": watchers.reconnects,
        "server_stopped_in_s": round(stopped, 2),
        "megabytes": {
            "idle": round(idle),
            "all_connected": round(opened),
            "run_goes_on": round(running),
            "after_restart_and_end": round(after),
        },
        "end_after_s": {"median": round(median(late), 2), "most": round(max(late), 2)},
    }


async def _until(condition: Any) -> None:
    async with asyncio.timeout(300):
        while not condition():  # noqa: ASYNC110 - others make it true
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
