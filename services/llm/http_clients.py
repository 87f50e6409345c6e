"""The HTTP client that the providers' SDKs are given."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, NamedTuple, Self

import httpx2

from promptstack.services.llm.transport import AiohttpTransport

CONNECT_SECONDS = 10.0
OWN_HEADERS = ("anthropic-version",)
"""The headers that we set on a client ourselves."""
KEY_HEADERS = ("api-key", "x-api-key", "x-goog-api-key")
"""Where the SDKs put the key, beside `Authorization`."""
# Idle connections are closed after 4 s, because uvicorn, which serves most compatible APIs, closes
# them after 5 s: a POST on a closing connection is lost.
CONNECTIONS = httpx2.Limits(max_connections=1_000, keepalive_expiry=4.0)
_ANSWERS: ContextVar[list[httpx2.Response]] = ContextVar("answers")


class SignedHead(NamedTuple):
    """A request as an SDK has addressed and signed it, without its body."""

    method: str
    url: httpx2.URL
    headers: httpx2.Headers
    extensions: Mapping[str, Any]

    @classmethod
    def of(cls, request: httpx2.Request) -> Self:
        """The head of a request that was sent."""
        headers = request.headers.copy()
        for name in ("Content-Length", "Cookie"):
            headers.pop(name, None)
        return cls(request.method, request.url, headers, request.extensions)


class ProviderClient(httpx2.AsyncClient):
    """An SDK's HTTP client, on aiohttp. It uses the proxies and certificates of the environment.

    An SDK's plain request, which has its address, headers and body, goes straight to the transport:
    httpx2's own way there, with its streams, hooks and merged defaults, takes more of the processor
    than aiohttp itself. All other requests, and redirects, go httpx2's way.
    """

    def __init__(self, timeout: httpx2.Timeout) -> None:
        super().__init__(
            timeout=timeout,
            limits=CONNECTIONS,
            follow_redirects=True,
            headers={"Accept-Encoding": "gzip, deflate"},  # all that aiohttp surely undoes
            event_hooks={"response": [_keep]},
        )
        self._defaults = [(name.lower(), value) for name, value in self.headers.multi_items()]
        self._transports: dict[tuple[str, str, int | None], Any] = {}

    def build_request(self, method: str, url: httpx2.URL | str, **parts: Any) -> httpx2.Request:
        """Build a request as httpx2 does."""
        content, timeout = parts.pop("content", None), parts.pop("timeout", self.timeout)
        headers = parts.pop("headers", None)
        is_plain = isinstance(content, (bytes, str)) and not any(parts.values())
        if not is_plain or timeout is httpx2.USE_CLIENT_DEFAULT:
            return super().build_request(
                method, url, content=content, headers=headers, timeout=timeout, **parts
            )
        body = content.encode() if isinstance(content, str) else content
        fields = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        given = {name.lower() for name, _ in fields}
        fields += [(name, value) for name, value in self._defaults if name not in given]
        address = _url(str(url))
        fields += [("Host", address.netloc.decode()), ("Content-Length", str(len(body)))]
        return httpx2.Request(
            method,
            address,
            headers=fields,
            cookies=self.cookies,
            stream=httpx2.ByteStream(body),
            extensions={"timeout": httpx2.Timeout(timeout).as_dict()},
        )

    async def send_again(self, head: SignedHead, body: bytes) -> httpx2.Response:
        """Send another body under a head that an SDK has made."""
        request = httpx2.Request(
            head.method,
            head.url,
            headers=head.headers,
            cookies=self.cookies,
            stream=httpx2.ByteStream(body),
            extensions=head.extensions,
        )
        request.headers["Content-Length"] = str(len(body))
        return await self.send(request)

    async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
        """Send a request as httpx2 does."""
        has_auth = how.get("auth") not in {None, httpx2.USE_CLIENT_DEFAULT}
        if self.is_closed or has_auth or how.get("stream") or request.url.userinfo:
            return await super().send(request, **how)
        transport = self._transport_of(request.url)
        answer: httpx2.Response = await transport.handle_async_request(request)
        if "set-cookie" in answer.headers:
            self.cookies.extract_cookies(answer)
        await _keep(answer)
        if not answer.has_redirect_location:
            return answer
        final = await super().send(self._build_redirect_request(request, answer), **how)
        final.history.insert(0, answer)
        return final

    def _redirect_headers(
        self, request: httpx2.Request, url: httpx2.URL, method: str
    ) -> httpx2.Headers:
        headers = super()._redirect_headers(request, url, method)
        if url.host != request.url.host:
            for name in KEY_HEADERS:  # httpx2 knows of `Authorization` only
                headers.pop(name, None)
        return headers

    def _transport_of(self, url: httpx2.URL) -> Any:
        """The transport to a server: its own one where a proxy stands before it."""
        server = (url.scheme, url.host, url.port)
        if server not in self._transports:
            self._transports[server] = self._transport_for_url(url)
        return self._transports[server]

    def _init_transport(self, *args: Any, **how: Any) -> httpx2.AsyncBaseTransport:
        return self._init_proxy_transport(None, *args, **how)

    def _init_proxy_transport(
        self, proxy: httpx2.Proxy | None, *_: Any, **how: Any
    ) -> httpx2.AsyncBaseTransport:
        tls = httpx2.create_ssl_context(how["verify"], how["cert"], how["trust_env"])
        return AiohttpTransport(how["limits"], tls, proxy)


@contextmanager
def kept_answers() -> Iterator[list[httpx2.Response]]:
    """A list to which a `ProviderClient` adds the answers to this task's call; empty in the end.

    A connection keeps the context of a call that used it, and with it this list, as long as it is
    open: with the answers in it, that was megabytes a connection.
    """
    answers: list[httpx2.Response] = []
    _ANSWERS.set(answers)
    try:
        yield answers
    finally:
        answers.clear()


def forget_environment(client: Any) -> None:
    """Remove what an SDK's client took from the environment for the provider itself.

    Another server must not see its organisation and headers, which may hold a key.
    """
    if hasattr(client, "organization"):
        client.organization = client.project = None
    given = getattr(client, "_custom_headers", {})
    client._custom_headers = {name: given[name] for name in given if name in OWN_HEADERS}


async def _keep(answer: httpx2.Response) -> None:
    await answer.aread()
    answers = _ANSWERS.get(None)
    if answers is not None:
        answers.append(answer)


@lru_cache(maxsize=1_024)
def _url(url: str) -> httpx2.URL:
    return httpx2.URL(url)
