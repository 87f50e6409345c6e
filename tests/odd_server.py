"""A server that answers anything."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tests.processes import PATIENCE, join


class OddServer:
    """Answers every call with the bytes it is told, whatever was asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.calls = 0
        self.url = ""
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            # From Python 3.12 on, it is closed once its clients are, who may keep theirs open.
            for client in self._clients:
                client.close()
            await self._server.wait_closed()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Serve on a loop of its own, until the block is left."""
        begun: Future[Callable[[], Any]] = Future()

        async def serve() -> None:
            over, loop = asyncio.Event(), asyncio.get_running_loop()
            await self.start()
            begun.set_result(lambda: loop.call_soon_threadsafe(over.set))
            await over.wait()
            await self.stop()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        end = begun.result(PATIENCE)
        try:
            yield
        finally:
            end()
            join(thread)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if "content-length:" in head:
                    await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
                self.calls += 1
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
