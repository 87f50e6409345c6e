"""The tests run in an environment that has the client and nothing of the server.

Most speak to a real server with a real worker: PROMPTSTACK_URL and PROMPTSTACK_API_KEY say where
(tests/acceptance/test_client.py of the repository starts them). Each test runs with both clients.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any, cast

import httpx2
import pytest

from promptstack_client import AsyncClient, Client
from promptstack_client.methods import Resource

Answer = Callable[[httpx2.Request], httpx2.Response]


class Awaited:
    """An `AsyncClient` that is used as a `Client` is: each method waits for its answer."""

    def __init__(self, runner: asyncio.Runner, wrapped: Any) -> None:
        self._runner = runner
        self._wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._wrapped, name)
        if isinstance(value, Resource):
            return Awaited(self._runner, value)
        return self._wait(value) if callable(value) else value

    def __iter__(self) -> Iterator[Any]:
        iterator = aiter(self._wrapped)
        while True:
            try:
                yield self._runner.run(anext(iterator))
            except StopAsyncIteration:
                return

    def _wait(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def waiting(*args: Any, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            if inspect.iscoroutine(answer):
                return self._runner.run(answer)
            return Awaited(self._runner, answer) if hasattr(answer, "__aiter__") else answer

        return waiting


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Iterator[Callable[..., Client]]:
    """Makes clients of one of the two kinds."""
    runner = asyncio.Runner()
    opened: list[Any] = []

    def making(answer: Answer | None = None, **options: Any) -> Client:
        if answer is not None:
            http = httpx2.Client if kind == "sync" else httpx2.AsyncClient
            options |= {"http": http(transport=httpx2.MockTransport(answer))}
            options = {"url": "http://server", "api_key": "ps_test", **options}
        client = Client(**options) if kind == "sync" else AsyncClient(**options)
        opened.append(client)
        return client if isinstance(client, Client) else cast("Client", Awaited(runner, client))

    yield making
    for client in opened:
        if isinstance(client, Client):
            client.close()
        else:
            runner.run(client.aclose())
    runner.close()


@pytest.fixture
def client(make: Callable[..., Client]) -> Client:
    """A client of the real server."""
    return make()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody sleeps; here stands for how long they would have."""
    slept: list[float] = []

    async def no_time(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr("promptstack_client.sending.time.sleep", slept.append)
    monkeypatch.setattr("promptstack_client.sending.asyncio.sleep", no_time)
    return slept
