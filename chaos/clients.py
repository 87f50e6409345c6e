"""Clients of the HTTP API that send the load, while the server they talk to is killed, too."""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import aiohttp
import psutil

from promptstack.chaos.load import Accepted, Target

ACCEPTED = 202
REQUEST_SECONDS = 15.0
REST_SECONDS = 0.5
"""Between two tries of a client whose request was not answered, or refused for the moment."""


class Clients:
    """So many clients, each with one request at a time; their answers' ids are the load.

    A client that gets no answer sends the same request with the same `Idempotency-Key` again, as
    an ordinary one does.
    """

    def __init__(
        self, url: str, key: str, target: Target, *, name: str, clients: int, seconds: float
    ) -> None:
        """Send to the API at `url`; spread over so many `seconds`."""
        self._url, self._key, self._target, self._name = url, key, target, name
        self._clients, self._seconds = clients, seconds
        self.accepted: list[Accepted] = []
        self.refusals = 0
        """Requests without an answer, or with one that says to come again."""
        self.surprises: list[str] = []
        """Answers that no client should get."""
        self._is_stopped = False

    def run(self, count: int) -> None:
        """Have `count` jobs accepted."""
        asyncio.run(self._run(count))

    def stop(self) -> None:
        """Send no more."""
        self._is_stopped = True

    async def _run(self, count: int) -> None:
        numbers = iter(range(count))
        began = asyncio.get_running_loop().time()
        async with aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            connector=aiohttp.TCPConnector(limit=self._clients),
        ) as session:

            async def client() -> None:
                for number in numbers:
                    due = began + self._seconds * number / count
                    await asyncio.sleep(due - asyncio.get_running_loop().time())
                    await self._send(session, number)

            await asyncio.gather(*(client() for _ in range(self._clients)))

    async def _send(self, session: aiohttp.ClientSession, number: int) -> None:
        request = self._target.request(self._name, number)
        body = {"provider": request.provider, "model": request.model}
        if request.is_embedding:
            url = f"{self._url}/api/v1/embeddings"
            body |= {"text": request.marker, "source": request.key}
        else:
            url = f"{self._url}/api/v1/generations"
            body |= {"prompt": request.marker}
        headers = {"Idempotency-Key": request.key}
        while not self._is_stopped:
            try:
                async with session.post(url, json=body, headers=headers) as answer:
                    if answer.status == ACCEPTED:
                        job_id = UUID((await answer.json())["id"])
                        self.accepted.append(request.accepted(job_id, str(request.model)))
                        return
                    if answer.status not in {429, 503}:
                        self.surprises.append(f"{answer.status}: {(await answer.text())[:200]}")
                        return  # it may be answered so for ever
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # sent again: what was accepted unknown to us is there already
            self.refusals += 1
            await asyncio.sleep(REST_SECONDS * (0.5 + random.random()))  # noqa: S311


@dataclass
class ApiProcess:
    """The API, which is started again when it ends."""

    keeper: psutil.Process
    url: str

    def kill(self) -> None:
        """End it by SIGKILL."""
        for server in self.keeper.children():
            server.kill()


@contextmanager
def api_process(environment: Mapping[str, str], log: Path) -> Iterator[ApiProcess]:
    """Serve the HTTP API on a free port, and again whenever it ends."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keep = [sys.executable, "-m", "promptstack.chaos.keep", "1"]
    command = [*keep, sys.executable, "-m", "promptstack.api.http"]
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
        ) as keeper,
    ):
        try:
            yield ApiProcess(psutil.Process(keeper.pid), f"http://127.0.0.1:{port}")
        finally:
            keeper.terminate()
