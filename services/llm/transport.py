"""Sends the requests of the providers' SDKs through aiohttp, and reads their answers whole.

Of an answer that is a stream, each part is heard as it comes, by whom `heard_by` names.

The SDKs come with such a transport of their own, made for streams. It reports each broken
connection as a timeout while connecting, encodes addresses again, and has no bound on an answer.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol

import aiohttp
import httpx2
import yarl
from multidict import CIMultiDict

LONGEST_HEADER = 131_072
"""Bytes of one header. aiohttp's default is 8 KB, and proxies send longer ones."""
MOST_HEADERS = 1_000
LARGEST_ANSWER = 256 * 2**20
"""Bytes of an answer, decompressed: more than 2,048 vectors of 4,096 numbers written as text."""
EVENT_STREAM = "text/event-stream"
AFTER_THE_END_SECONDS = 5.0
"""How long a stream may stay open when all of its answer has come, for its usage."""
_ERRORS: tuple[tuple[type[BaseException], type[httpx2.TransportError]], ...] = (
    (aiohttp.ClientProxyConnectionError, httpx2.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ClientConnectionError, httpx2.ReadError),
    (aiohttp.ClientPayloadError, httpx2.ReadError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
)
"""What aiohttp raises and what it is for an SDK; the first that fits holds."""


class AnswerTooLarge(httpx2.DecodingError):
    """The answer has more than `LARGEST_ANSWER` bytes; the rest of it was not read."""


class Hearer(Protocol):
    """Hears an answer that is a stream."""

    @property
    def is_complete(self) -> bool:
        """Whether all of the answer is here, so that what may still come can be missed."""

    def begin(self) -> None:
        """A stream begins."""

    def hear(self, part: bytes) -> None:
        """Take the next bytes."""


_HEARERS: ContextVar[list[Hearer]] = ContextVar("hearers")


@contextmanager
def heard_by(hearer: Hearer) -> Iterator[None]:
    """Let streams be heard that answer the calls of this task.

    A connection keeps the context of a call that used it, so the list is emptied at the end.
    """
    hearers = [hearer]
    token = _HEARERS.set(hearers)
    try:
        yield
    finally:
        hearers.clear()
        _HEARERS.reset(token)


def is_heard() -> bool:
    """Whether streams are heard that answer this task's calls."""
    return bool(_HEARERS.get(None))


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """One aiohttp session, made on the loop of the first request."""

    def __init__(
        self, limits: httpx2.Limits, tls: ssl.SSLContext, proxy: httpx2.Proxy | None
    ) -> None:
        self._limits = limits
        self._tls = tls
        self._proxy = None if proxy is None else str(proxy.url)
        self._proxy_headers = {} if proxy is None else dict(proxy.headers)
        if proxy is not None and proxy.auth is not None:
            # aiohttp makes the proxy's own header of it.
            self._proxy_headers["Authorization"] = aiohttp.encode_basic_auth(*proxy.auth)
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request. Its answer is read whole, so that its connection is free at once."""
        session = self._session or self._open()
        waits = request.extensions.get("timeout", {})
        try:
            async with session.request(
                request.method,
                _address(str(request.url)),
                headers=CIMultiDict(request.headers.multi_items()),
                data=await request.aread() or None,
                allow_redirects=False,
                timeout=_timeout(waits.get("connect"), waits.get("read"), waits.get("pool")),
                server_hostname=request.extensions.get("sni_hostname"),
                proxy=self._proxy,
                proxy_headers=CIMultiDict(self._proxy_headers),
            ) as answer:
                try:
                    body = await _read(answer, _hearer(answer))
                except BaseException:
                    answer.close()  # the next call must not find the rest of it
                    raise
        except (aiohttp.ClientError, TimeoutError) as error:
            for kind, translated in _ERRORS:
                if isinstance(error, kind):
                    raise translated(str(error), request=request) from error
            raise
        return httpx2.Response(
            answer.status, headers=_plain(answer.raw_headers), content=body, request=request
        )

    async def aclose(self) -> None:
        """Close all connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._limits.max_connections or 0,
                keepalive_timeout=self._limits.keepalive_expiry or 15.0,
                ssl=self._tls,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),  # the SDK's client keeps them
            max_line_size=LONGEST_HEADER,
            max_field_size=LONGEST_HEADER,
            max_headers=MOST_HEADERS,
        )
        return self._session


def _hearer(answer: aiohttp.ClientResponse) -> Hearer | None:
    """Who hears this answer, if it is a stream."""
    hearers = _HEARERS.get(None)
    if not hearers or not answer.ok or answer.content_type != EVENT_STREAM:
        return None
    hearers[0].begin()
    return hearers[0]


async def _read(answer: aiohttp.ClientResponse, hearer: Hearer | None) -> bytes:
    """The whole answer, decompressed. Raises `AnswerTooLarge` before it is all in memory.

    What is heard is not kept. A stream that breaks when all of its answer has come counts as whole.
    """
    if (answer.content_length or 0) > LARGEST_ANSWER:
        raise AnswerTooLarge(f"an answer of {answer.content_length:,} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(None) as limit:
            async for part in answer.content.iter_any():
                size += len(part)
                if size > LARGEST_ANSWER:
                    raise AnswerTooLarge(f"an answer of over {size:,} bytes")
                if hearer is None:
                    parts.append(part)
                    continue
                hearer.hear(part)
                if hearer.is_complete and limit.when() is None:
                    now = asyncio.get_running_loop().time()
                    limit.reschedule(now + AFTER_THE_END_SECONDS)
    except (aiohttp.ClientError, TimeoutError):
        if hearer is None or not hearer.is_complete:
            raise
        answer.close()
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _plain(headers: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    """Without what aiohttp has undone: httpx2 would decompress the answer again."""
    return [pair for pair in headers if pair[0].lower() != b"content-encoding"]


@lru_cache(maxsize=1_024)
def _address(url: str) -> yarl.URL:
    """The address without a user and a password: they are in the header already."""
    return yarl.URL(url, encoded=True).with_user(None)


@lru_cache(maxsize=64)
def _timeout(
    connect: float | None, read: float | None, pool: float | None
) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(sock_connect=connect, sock_read=read, connect=pool)
