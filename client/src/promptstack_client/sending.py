"""Sends calls: once for programs that wait, once for asyncio. What they decide is decided below."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator
from typing import Any, Self, TypeVar

import httpx2

from promptstack_client.answers import problem_of
from promptstack_client.calls import Call
from promptstack_client.connection import translated
from promptstack_client.errors import ApiError, ConnectionFailed
from promptstack_client.feeds import Feed
from promptstack_client.retries import Tries
from promptstack_client.settings import Settings

T = TypeVar("T")
LIMITS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
"""Who watches hundreds of jobs has a connection for each."""
Flow = Generator[Call[Any] | float, Any, T]
"""Several calls, and pauses of so many seconds between them; what it returns is the answer."""


class Sender:
    """Sends calls and waits for their answers."""

    def __init__(self, settings: Settings, http: httpx2.Client | None = None) -> None:
        self.settings = settings
        self._http = http or httpx2.Client(limits=LIMITS)

    def send(self, call: Call[T]) -> T:
        """The answer of a call."""
        return call.route.read(self._respond(call))

    def drive(self, flow: Flow[T]) -> T:
        """The answer of several calls."""
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                answer = self.send(step)
            else:
                time.sleep(step)
                answer = None

    def stream(self, feed: Feed[T]) -> Generator[T, None, None]:
        """What a feed gives, over as many connections as it takes."""
        if feed.first is not None:
            feed.begin(self.send(feed.first))
        tries = Tries(self.settings.max_retries)
        with feed:
            while not feed.ended:
                call = feed.call()
                response = self._respond(call, stream=True)
                try:
                    with tries.watched(), translated(str(response.request.url)):
                        for piece in feed.pieces(response):
                            if feed.is_progress(piece):
                                tries.went_well()
                            yield from feed.take(piece)
                        feed.close()
                except ConnectionFailed as error:
                    time.sleep(tries.pause_after(error, call))
                finally:
                    response.close()

    def read(self, feed: Feed[T]) -> T:
        """What a feed has when all of it is read."""
        for _ in self.stream(feed):
            pass
        return feed.result  # type: ignore[no-any-return]

    def _respond(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        tries = Tries(self.settings.max_retries)
        while True:
            try:
                return self._try(call, stream=stream)
            except (ApiError, ConnectionFailed) as error:
                pause = tries.pause_after(error, call)
            time.sleep(pause)

    def _try(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        request = call.request(self._http, self.settings)
        with translated(str(request.url)):
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            response.read()
        raise problem_of(response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncSender:
    """Sends calls within an asyncio loop."""

    def __init__(self, settings: Settings, http: httpx2.AsyncClient | None = None) -> None:
        self.settings = settings
        self._http = http or httpx2.AsyncClient(limits=LIMITS)

    async def send(self, call: Call[T]) -> T:
        """The answer of a call."""
        return call.route.read(await self._respond(call))

    async def drive(self, flow: Flow[T]) -> T:
        """The answer of several calls."""
        answer = None
        while True:
            try:
                step = flow.send(answer)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            if isinstance(step, Call):
                answer = await self.send(step)
            else:
                await asyncio.sleep(step)
                answer = None

    async def stream(self, feed: Feed[T]) -> AsyncGenerator[T, None]:
        """What a feed gives, over as many connections as it takes."""
        if feed.first is not None:
            feed.begin(await self.send(feed.first))
        tries = Tries(self.settings.max_retries)
        with feed:
            while not feed.ended:
                call = feed.call()
                response = await self._respond(call, stream=True)
                try:
                    with tries.watched(), translated(str(response.request.url)):
                        async for piece in feed.pieces(response):
                            if feed.is_progress(piece):
                                tries.went_well()
                            for part in feed.take(piece):
                                yield part
                        feed.close()
                except ConnectionFailed as error:
                    await asyncio.sleep(tries.pause_after(error, call))
                finally:
                    await response.aclose()

    async def read(self, feed: Feed[T]) -> T:
        """What a feed has when all of it is read."""
        async for _ in self.stream(feed):
            pass
        return feed.result  # type: ignore[no-any-return]

    async def _respond(self, call: Call[Any], *, stream: bool = False) -> httpx2.Response:
        tries = Tries(self.settings.max_retries)
        while True:
            try:
                return await self._try(call, stream=stream)
            except (ApiError, ConnectionFailed) as error:
                pause = tries.pause_after(error, call)
            await asyncio.sleep(pause)

    async def _try(self, call: Call[Any], *, stream: bool) -> httpx2.Response:
        request = call.request(self._http, self.settings)
        with translated(str(request.url)):
            response = await self._http.send(request, stream=stream)
            if response.is_success:
                return response
            await response.aread()
        raise problem_of(response)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
