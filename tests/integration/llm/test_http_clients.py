"""What lies between an SDK and the wire: requests, answers, proxies, certificates, bounds."""

import asyncio
import base64
import gzip
import json
import os
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from promptstack.services.llm import transport
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import (
    BadResponse,
    ConnectionFailed,
    LargeAnswer,
    NeverSent,
    ProviderError,
)
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.sdk import SDKService
from tests.tls import Authority

KEY = "sk-" + "a1" * 12
SERVICES: dict[str, Callable[..., LLMService]] = {
    "openai": OpenAIService,
    "anthropic": AnthropicService,
    "gemini": GeminiService,
}
ANSWERS: dict[str, dict[str, Any]] = {
    "openai": {
        "choices": [
            {"message": {"role": "assistant", "content": "Blue."}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3},
    },
    "anthropic": {
        "content": [{"type": "text", "text": "Blue."}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 5, "output_tokens": 3},
    },
    "gemini": {
        "candidates": [{"content": {"parts": [{"text": "Blue."}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 3},
    },
}
of_all = pytest.mark.parametrize("provider", SERVICES)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.lower().endswith(("_proxy", "_headers", "_bundle")) or "CERT" in variable:
            monkeypatch.delenv(variable)


@dataclass
class Heard:
    """One request as it stood on the wire."""

    line: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Heard, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Server:
    """Answers requests by a function, and keeps them. As a proxy, it also makes tunnels."""

    respond: Respond
    port: int = 0
    requests: list[Heard] = field(default_factory=list)
    connections: int = 0
    broken_off: int = 0
    """Connections that the client closed while it was being answered."""
    _talks: set["asyncio.Task[None] | None"] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=tls, limit=2**22)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await asyncio.gather(*filter(None, self._talks))

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._talks.add(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                heard = await _hear(reader)
                self.requests.append(heard)
                if heard.line.startswith("CONNECT"):
                    await _tunnel(heard, reader, writer)
                    break
                try:
                    await self.respond(heard, writer)
                    await writer.drain()
                except ConnectionError:
                    self.broken_off += 1
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def _hear(reader: asyncio.StreamReader) -> Heard:
    line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = {name.lower(): value for name, value in (one.split(": ", 1) for one in rest)}
    return Heard(line, headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def _tunnel(heard: Heard, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        there, back = await asyncio.open_connection(*heard.line.split()[1].rsplit(":", 1))
    except OSError:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n")
        return
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while said := await source.read(65_536):
            sink.write(said)
        sink.close()
        with suppress(ConnectionError):
            await sink.wait_closed()

    await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)


def answering(body: bytes, *headers: str, status: str = "200 OK") -> Respond:
    """Answer each request with this body."""
    head = [f"HTTP/1.1 {status}", "content-type: application/json", *headers]
    if not any(header.startswith(("content-length", "transfer-encoding")) for header in headers):
        head.append(f"content-length: {len(body)}")

    async def respond(_: Heard, writer: asyncio.StreamWriter) -> None:
        writer.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)

    return respond


def said(provider: str) -> bytes:
    return json.dumps(ANSWERS[provider]).encode()


def service(provider: str, url: str) -> LLMService:
    base = f"{url}/v1" if provider == "openai" else url
    return SERVICES[provider](api_key=KEY, base_url=base, timeout=10.0)


async def ask(llm: LLMService, model: str = "m") -> LLMResponse:
    request = GenerationRequest(provider=llm.name, model=model, prompt="Why is the sky blue? ü")
    return await llm.generate_text(request, None)


async def _asked(provider: str, url: str) -> LLMResponse | ProviderError:
    """What one call brings."""
    llm = service(provider, url)
    try:
        return await ask(llm)
    except ProviderError as error:
        return error
    finally:
        await llm.aclose()


async def served(server: Server, provider: str) -> LLMResponse | ProviderError:
    async with server.serving():
        return await _asked(provider, server.url)


def outcome(server: Server, provider: str) -> LLMResponse | ProviderError:
    """What one call to the server brings."""
    return asyncio.run(served(server, provider))


# Requests


async def by_sdk(provider: str, url: str, body: dict[str, Any]) -> None:
    """The same request by the SDK with its own HTTP client."""
    client: Any
    if provider == "anthropic":
        client, path = anthropic.AsyncAnthropic(api_key=KEY, base_url=url), "/v1/messages"
    elif provider == "azure":
        path = "/chat/completions"
        client = openai.AsyncAzureOpenAI(api_key=KEY, azure_endpoint=url, api_version="2025-01-01")
    else:
        client, path = openai.AsyncOpenAI(api_key=KEY, base_url=f"{url}/v1"), "/chat/completions"
    async with client:
        client = client.with_options(max_retries=0, timeout=httpx2.Timeout(10.0, connect=10.0))
        await client.post(path, cast_to=httpx2.Response, body=body)


class Clock:
    """Time as a test sets it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def signing(provider: str, url: str, clock: Clock) -> LLMService:
    """A service whose SDK builds and signs requests."""
    if provider == "azure":
        return OpenAIService(api_key=KEY, base_url=url, api_version="2025-01-01", clock=clock)
    base = f"{url}/v1" if provider == "openai" else url
    return SERVICES[provider](api_key=KEY, base_url=base, clock=clock)


@pytest.mark.parametrize("provider", ["openai", "azure", "anthropic"])
def test_every_request_is_the_one_that_the_sdk_makes(provider: str) -> None:
    """Also those under a head that it made before."""
    server = Server(answering(said("openai" if provider == "azure" else provider)))

    async def ours_and_theirs() -> None:
        async with server.serving():
            llm = signing(provider, server.url, Clock())
            for model in ("m", "m", "n"):
                await ask(llm, model)
            await llm.aclose()
            for heard in list(server.requests):
                await by_sdk(provider, server.url, json.loads(heard.body))

    asyncio.run(ours_and_theirs())
    for ours, theirs in zip(server.requests[:3], server.requests[3:], strict=True):
        assert ours.line == theirs.line
        assert json.loads(ours.body) == json.loads(theirs.body)
        lengths = [int(it.headers.pop("content-length")) for it in (ours, theirs)]
        assert lengths == [len(ours.body), len(theirs.body)]
        assert ours.headers.pop("x-stainless-read-timeout", "60") == "60.0"
        assert theirs.headers.pop("x-stainless-read-timeout", "10") == "10.0"
        assert ours.headers == theirs.headers


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_the_sdk_signs_again_after_a_minute_and_after_a_refusal(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed, post = 0, SDKService._post
    clock, refuses = Clock(), False

    def counted(self: Any, *how: Any) -> Any:
        nonlocal signed
        signed += 1
        return post(self, *how)

    async def respond(heard: Heard, writer: asyncio.StreamWriter) -> None:
        status = "401 Unauthorized" if refuses else "200 OK"
        await answering(said(provider), status=status)(heard, writer)

    async def run() -> list[int]:
        nonlocal refuses
        counts = []
        async with Server(respond).serving() as server:
            llm = signing(provider, server.url, clock)
            for clock.now in (0.0, 1.0, 59.0, 61.0, 62.0, 63.0, 64.0):
                refuses = clock.now == 62.0
                with suppress(ProviderError):
                    await ask(llm)
                counts.append(signed)
            await llm.aclose()
        return counts

    monkeypatch.setattr(SDKService, "_post", counted)
    assert asyncio.run(run()) == [1, 1, 1, 2, 2, 3, 3]


@of_all
def test_a_server_gets_its_cookies_back(provider: str) -> None:
    server = Server(answering(said(provider), "set-cookie: route=a1; Path=/"))

    async def twice() -> None:
        async with server.serving():
            llm = service(provider, server.url)
            await ask(llm)
            await ask(llm)
            await llm.aclose()

    asyncio.run(twice())
    first, second = (heard.headers.get("cookie") for heard in server.requests)
    assert (first, second) == (None, "route=a1")
    assert server.connections == 1


@of_all
def test_a_call_is_sent_on_where_a_server_says_so_and_the_key_stays_here(provider: str) -> None:
    elsewhere = Server(answering(said(provider)))

    async def away(heard: Heard, writer: asyncio.StreamWriter) -> None:
        where = f"location: http://localhost:{elsewhere.port}/there"
        await answering(b"", where, status="307 Temporary Redirect")(heard, writer)

    async def twice() -> None:
        async with elsewhere.serving(), here.serving():
            llm = service(provider, here.url)
            await ask(llm)
            await ask(llm)
            await llm.aclose()

    here = Server(away)
    asyncio.run(twice())
    for first, second in zip(here.requests, elsewhere.requests, strict=True):
        assert second.line == "POST /there HTTP/1.1"
        assert second.body == first.body
        assert KEY in str(first.headers) + first.line
        assert KEY not in str(second.headers) + second.line
    assert len(here.requests) == 2


# Answers


@of_all
@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_answer_is_read(provider: str, coding: str) -> None:
    packed = (gzip.compress if coding == "gzip" else zlib.compress)(said(provider))
    answer = outcome(Server(answering(packed, f"content-encoding: {coding}")), provider)
    assert isinstance(answer, LLMResponse), answer
    assert answer.text == "Blue."


@of_all
def test_a_compressed_answer_in_pieces_is_read(provider: str) -> None:
    packed = gzip.compress(said(provider))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in packed) + b"0\r\n\r\n"
    headers = ("content-encoding: gzip", "transfer-encoding: chunked")
    answer = outcome(Server(answering(chunks, *headers)), provider)
    assert isinstance(answer, LLMResponse), answer
    assert answer.text == "Blue."


def cut(body: bytes, *headers: str) -> Respond:
    """Answer with half of what was announced."""

    async def respond(heard: Heard, writer: asyncio.StreamWriter) -> None:
        length = f"content-length: {len(body)}"
        await answering(body[: len(body) // 2], length, *headers)(heard, writer)
        writer.close()

    return respond


@of_all
@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_answer_that_is_cut_off_is_a_broken_connection(
    provider: str, is_compressed: bool
) -> None:
    body, coding = said(provider), list[str]()
    if is_compressed:
        body, coding = gzip.compress(body), ["content-encoding: gzip"]
    error = outcome(Server(cut(body, *coding)), provider)
    assert type(error) is ConnectionFailed
    assert error.transient


@of_all
def test_an_answer_in_another_coding_than_it_says_is_an_error_of_ours(provider: str) -> None:
    error = outcome(Server(answering(said(provider), "content-encoding: gzip")), provider)
    assert isinstance(error, (BadResponse, ConnectionFailed))


async def endless(_: Heard, writer: asyncio.StreamWriter) -> None:
    """Answer until nobody listens any more."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        await writer.drain()


def bomb(bytes_: int) -> bytes:
    """Spaces, packed to a thousandth."""
    packer = zlib.compressobj(wbits=31)
    return b"".join(packer.compress(b" " * 2**20) for _ in range(bytes_ // 2**20)) + packer.flush()


@of_all
@pytest.mark.parametrize("how", ["as announced", "without end", "unpacked"])
def test_an_answer_without_end_is_given_up(
    provider: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "LARGEST_ANSWER", 2**21)
    server = Server(
        {
            "as announced": answering(b"{", f"content-length: {2**21 + 1}"),
            "without end": endless,
            "unpacked": answering(bomb(2**26), "content-encoding: gzip"),
        }[how]
    )

    error = outcome(server, provider)  # the server ends when its connections do
    assert type(error) is LargeAnswer
    assert server.broken_off == (how == "without end")
    assert not error.transient, "it would be paid for again"
    assert len(server.requests) == 1


@of_all
def test_a_broken_call_is_not_sent_again_on_another_connection(provider: str) -> None:
    """It may have been paid for. A connection that was open before tells nothing of it."""
    count = 0

    async def once(heard: Heard, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await answering(said(provider))(heard, writer)
        else:
            writer.close()

    server = Server(once)

    async def run() -> tuple[LLMResponse, ProviderError]:
        async with server.serving():
            llm = service(provider, server.url)
            first = await ask(llm)
            with pytest.raises(ConnectionFailed) as caught:
                await ask(llm)
            await llm.aclose()
            return first, caught.value

    _, error = asyncio.run(run())
    assert not isinstance(error, NeverSent)
    assert len(server.requests) == 2


# Proxies and certificates


@of_all
def test_a_call_goes_by_the_proxy_of_the_environment(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server(answering(said(provider)))

    async def run() -> LLMResponse | ProviderError:
        async with proxy.serving():
            monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss@127.0.0.1:{proxy.port}")
            return await _asked(provider, "http://provider.invalid:8080")

    answer = asyncio.run(run())
    assert isinstance(answer, LLMResponse), answer
    (heard,) = proxy.requests
    assert heard.line.startswith("POST http://provider.invalid:8080/")
    assert heard.headers["host"] == "provider.invalid:8080"
    credentials = base64.b64encode(b"me:p@ss").decode()
    assert heard.headers["proxy-authorization"] == f"Basic {credentials}"


@of_all
def test_a_call_goes_past_the_proxy_to_a_server_of_no_proxy(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert isinstance(outcome(Server(answering(said(provider))), provider), LLMResponse)


@of_all
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_away_means_that_nothing_was_sent(
    provider: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", "http://127.0.0.1:9")
    error = asyncio.run(_asked(provider, f"{scheme}://provider.invalid"))
    assert isinstance(error, NeverSent), error


@of_all
def test_a_proxy_that_finds_no_server_means_that_nothing_was_sent(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Server(answering(b"", status="500 Not asked"))

    async def run() -> LLMResponse | ProviderError:
        async with proxy.serving():
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            return await _asked(provider, "https://provider.invalid")

    error = asyncio.run(run())
    assert isinstance(error, NeverSent), error
    assert len(proxy.requests) == 1


@of_all
def test_tls_to_a_server_behind_a_proxy_trusts_what_the_environment_names(
    provider: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority.certificate("localhost"))
    server = Server(answering(said(provider)))
    proxy = Server(answering(b"", status="500 Not asked"))

    async def run() -> list[LLMResponse | ProviderError]:
        async with server.serving(tls), proxy.serving():
            url = f"https://localhost:{server.port}"
            strange = await _asked(provider, url)
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
            direct = await _asked(provider, url)
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            return [strange, direct, await _asked(provider, url)]

    strange, direct, by_proxy = asyncio.run(run())
    assert isinstance(strange, NeverSent), strange
    assert isinstance(direct, LLMResponse), direct
    assert isinstance(by_proxy, LLMResponse), by_proxy
    assert [heard.line.split()[0] for heard in proxy.requests] == ["CONNECT"]
    assert len(server.requests) == 2
