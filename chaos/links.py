"""Lines to servers that can be slow or dead: a TCP address before a server's Unix socket."""

import asyncio
import threading
from contextlib import suppress

CHUNK = 65_536


class Lines:
    """Lines to some Unix sockets, all in the same condition."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lines", daemon=True)
        self._thread.start()
        self._servers: list[asyncio.Server] = []
        self._delay = 0.0
        self._passable = asyncio.Event()
        self._loop.call_soon_threadsafe(self._passable.set)

    def open(self, socket: str) -> int:
        """Lead a TCP port of the loopback address to a Unix socket; the port."""

        async def serve() -> int:
            server = await asyncio.start_server(
                lambda reader, writer: self._connect(socket, reader, writer), "127.0.0.1", 0
            )
            self._servers.append(server)
            port: int = server.sockets[0].getsockname()[1]
            return port

        return asyncio.run_coroutine_threadsafe(serve(), self._loop).result()

    def delay(self, seconds: float) -> None:
        """Hold every piece back for so long; 0 ends that."""
        self._delay = seconds

    def cut(self) -> None:
        """Let nothing pass: neither side is told, as when a network goes silent."""
        self._loop.call_soon_threadsafe(self._passable.clear)

    def mend(self) -> None:
        """Let all pass again."""
        self._loop.call_soon_threadsafe(self._passable.set)

    def close(self) -> None:
        """End all lines."""

        async def end() -> None:
            for server in self._servers:
                server.close()
            passing = asyncio.all_tasks() - {asyncio.current_task()}
            for task in passing:
                task.cancel()
            await asyncio.gather(*passing, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _connect(
        self, socket: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await self._passable.wait()
        try:
            to, back = await asyncio.open_unix_connection(socket)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self._pass(reader, back), self._pass(to, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._passable.wait()
                writer.write(data)
                await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.close()
