"""The openai service against the simulator, over real HTTP."""

import asyncio
import gc
import json
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar
from urllib.error import HTTPError

import httpx2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse
from promptstack.services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    ContextTooLong,
    Denied,
    Intercepted,
    InvalidProviderRequest,
    ModelNotFound,
    NeverSent,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.headers import MOST_CREDIBLE_WAIT, retry_after
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import GenerationRequest, Message
from promptstack.services.llm.translation import LONGEST_DETAIL
from promptstack.simulator.answers import text_for, vector_for
from promptstack.simulator.faults import NO_FAULT
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.openai import embeddings
from promptstack.simulator.process import SimulatorProcess
from promptstack.simulator.wire import ProviderRequest
from tests.simulators import ForkedSimulator

CHAT = "gpt-5-mini"
EMBEDDING = "text-embedding-3-small"
REQUEST = GenerationRequest(provider="openai", model=CHAT, prompt="Why is the sky blue?")
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

T = TypeVar("T")


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.wait_until_idle()
    running.reset()
    return running


def use(url: str, work: Callable[[OpenAIService], Awaitable[T]], timeout: float = 10.0) -> T:
    """Do `work` with a service on a loop of its own, and close it."""

    async def run() -> T:
        service = OpenAIService(api_key="sk-test", base_url=url, timeout=timeout)
        try:
            return await work(service)
        finally:
            await service.aclose()

    return asyncio.run(run())


def generate(url: str, request: GenerationRequest = REQUEST, timeout: float = 10.0) -> LLMResponse:
    return use(url, lambda service: service.generate_text(request, None), timeout)


def embed(url: str, texts: list[str], timeout: float = 10.0) -> EmbeddingResponse:
    return use(url, lambda service: service.embed(texts, EMBEDDING, None), timeout)


def failure(url: str, timeout: float = 10.0) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        generate(url, timeout=timeout)
    return caught.value


class CannedServer:
    """Answers every connection with the same bytes, and keeps what was asked."""

    def __init__(self, answer: bytes, pause: float = 0.0) -> None:
        self._answer = answer
        self._pause = pause
        self.requests: list[dict[str, Any]] = []

    async def use(self, work: Callable[[OpenAIService], Awaitable[T]]) -> T:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        service = OpenAIService(base_url=f"http://127.0.0.1:{port}/v1")
        try:
            async with server:
                return await work(service)
        finally:
            await service.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        self.requests.append(json.loads(await reader.readexactly(length)))
        writer.write(self._answer)
        writer.close()
        await writer.wait_closed()


def http(body: str, status: str = "200 OK", kind: str = "application/json") -> bytes:
    raw = body.encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n"
    return f"{head}connection: close\r\nx-request-id: req_canned\r\n\r\n".encode() + raw


def completion(message: dict[str, Any], finish_reason: str = "stop", **more: Any) -> bytes:
    return http(
        json.dumps({"choices": [{"message": message, "finish_reason": finish_reason}], **more})
    )


def canned(answer: bytes, request: GenerationRequest = REQUEST) -> LLMResponse:
    server = CannedServer(answer)
    return asyncio.run(server.use(lambda service: service.generate_text(request, None)))


# Generations


def test_open_connections_keep_no_answers(simulator: SimulatorProcess) -> None:
    """They keep the contexts of calls, which is megabytes each if an answer is in them."""

    async def scenario() -> int:
        service = OpenAIService(api_key="sk-x", base_url=simulator.url)
        for number in range(2):
            texts = [[f"{number} {call} {text}" for text in range(100)] for call in range(4)]
            await asyncio.gather(*(service.embed(one, EMBEDDING, None) for one in texts))
        gc.collect()
        kept = sum(isinstance(one, httpx2.Response) for one in gc.get_objects())
        await service.aclose()
        return kept

    gc.collect()
    before = sum(isinstance(one, httpx2.Response) for one in gc.get_objects())
    assert asyncio.run(scenario()) <= before


def test_a_generation_comes_back_with_its_cost(simulator: SimulatorProcess) -> None:
    response = generate(simulator.url)

    assert response.text == text_for(CHAT, ["Why is the sky blue?"])
    assert response.model == CHAT
    assert response.finish_reason == "stop"
    assert response.input_tokens == 5
    assert (response.output_tokens or 0) > 5
    assert response.provider_request_id is not None
    assert response.provider_request_id.startswith("req_")
    assert response.latency_seconds > 0
    key = billing_key("/v1/chat/completions", CHAT, "Why is the sky blue?")
    assert simulator.ledger() == {key: 1}


def test_a_conversation_and_every_parameter_are_sent() -> None:
    server = CannedServer(completion({"content": "yes"}))
    request = GenerationRequest(
        provider="openai",
        model="m",
        messages=(Message(role="user", content="one"), Message(role="assistant", content="two")),
        system="be brief",
        temperature=0.5,
        max_tokens=7,
        stop=("end",),
        seed=3,
        options={"reasoning_effort": "low"},
    )

    asyncio.run(server.use(lambda service: service.generate_text(request, None)))

    assert server.requests == [
        {
            "model": "m",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
            ],
            "temperature": 0.5,
            "max_completion_tokens": 7,
            "stop": ["end"],
            "seed": 3,
            "reasoning_effort": "low",
        }
    ]


def test_what_was_not_asked_for_is_not_sent() -> None:
    server = CannedServer(completion({"content": "yes"}))

    asyncio.run(server.use(lambda service: service.generate_text(REQUEST, None)))

    assert server.requests[0].keys() == {"model", "messages"}


@pytest.mark.parametrize("option", ["stream", "n", "model", "messages"])
def test_options_that_change_the_form_of_the_answer_are_refused(
    simulator: SimulatorProcess, option: str
) -> None:
    request = REQUEST.model_copy(update={"options": {option: 1}})

    with pytest.raises(InvalidInput, match=option):
        OpenAIService.check_options(request.options)
    with pytest.raises(InvalidProviderRequest, match=option):
        generate(simulator.url, request)
    assert simulator.stats()["requests"] == 0


def test_a_short_answer_says_that_it_was_cut(simulator: SimulatorProcess) -> None:
    response = generate(simulator.url, REQUEST.model_copy(update={"max_tokens": 2}))

    assert response.finish_reason == "length"
    assert response.output_tokens == 2


def test_an_answer_that_cannot_be_stored_is_kept_in_a_form_that_can(
    simulator: SimulatorProcess,
) -> None:
    simulator.control({"kind": "nul"})
    assert generate(simulator.url).text.endswith("sky blue?\ufffd")

    assert canned(completion({"content": "a\ud800b"})).text == "a\ufffdb"


def test_what_a_server_does_not_count_is_unknown() -> None:
    response = canned(completion({"content": "12345"}))

    assert (response.input_tokens, response.output_tokens) == (None, None)
    assert response.tokens_used is None
    assert response.note == "usage is missing"
    assert response.model == CHAT


def test_an_empty_answer_that_is_no_refusal_is_an_answer() -> None:
    response = canned(completion({"content": None}, "length"))

    assert (response.text, response.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    "answer",
    [
        completion({"content": None, "refusal": "I will not repeat: sky"}),
        completion({"content": ""}, "content_filter"),
        http('{"error": {"code": "content_filter", "message": "sky"}}', "400 Bad Request"),
    ],
)
def test_a_refusal_is_content_refused(answer: bytes) -> None:
    with pytest.raises(ContentRefused) as caught:
        canned(answer)

    assert not caught.value.transient
    assert caught.value.request_id == "req_canned"
    assert "sky" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        http('{"choices": []}'),
        http('{"error": {"message": "sky"}}'),
        http("[]"),
        http("null"),
        http(""),
        http('{"choices": [{"mess'),
        http('{"choices": [{"message": {"content": {"sky": 1}}}]}'),
        http('{"choices": [{"message": "sky"}]}'),
    ],
)
def test_an_answer_of_another_form_is_a_bad_response(answer: bytes) -> None:
    with pytest.raises(BadResponse) as caught:
        canned(answer)

    assert caught.value.transient
    assert (caught.value.status, caught.value.request_id) == (200, "req_canned")
    assert "sky" not in str(caught.value)


def test_a_page_in_place_of_an_answer_is_nothing_that_was_paid_for() -> None:
    with pytest.raises(Intercepted) as caught:
        canned(http("<html>the sky is down</html>", kind="text/html"))

    assert caught.value.transient
    assert "sky" not in str(caught.value)


def test_bytes_that_are_no_http_are_a_bad_response() -> None:
    with pytest.raises(BadResponse):
        canned(b"220 mail.example.org ESMTP\r\n\r\n")


def test_a_connection_that_ends_in_mid_answer_is_a_failed_connection() -> None:
    with pytest.raises(ConnectionFailed):
        canned(completion({"content": "a long answer"})[:-10])


# Embeddings


def test_vectors_come_back_as_they_were_sent(simulator: SimulatorProcess) -> None:
    texts = ["one", "zwei", "три"]

    response = embed(simulator.url, texts)

    assert response.vectors.dtype == np.float32
    np.testing.assert_array_equal(
        response.vectors, np.stack([vector_for(EMBEDDING, text) for text in texts])
    )
    assert response.input_tokens == 4
    assert response.provider_request_id is not None
    assert simulator.ledger() == {
        billing_key("/v1/embeddings", EMBEDDING, text): 1 for text in texts
    }


def test_token_ids_and_dimensions_are_handed_on(simulator: SimulatorProcess) -> None:
    ids = (1, 2_345, 67_890)
    asked = use(
        simulator.url, lambda service: service.embed([ids, "two"], EMBEDDING, None, dimensions=8)
    )
    expected = [vector_for(EMBEDDING, text, 8) for text in ("000123457890", "two")]
    np.testing.assert_array_equal(asked.vectors, expected)
    assert asked.input_tokens == 4


def test_the_largest_request_fits(simulator: SimulatorProcess) -> None:
    limits = OpenAIService.embedding_limits
    texts = ["x" * (limits.bytes // limits.items)] * limits.items

    assert embed(simulator.url, texts).vectors.shape == (limits.items, 1536)


@pytest.mark.parametrize("kind", ["shuffled", "floats"])
def test_order_and_encoding_of_the_answer_do_not_matter(
    simulator: SimulatorProcess, kind: str
) -> None:
    expected = embed(simulator.url, ["a", "b", "c"])
    simulator.control({"kind": kind})

    answered = embed(simulator.url, ["a", "b", "c"])

    np.testing.assert_array_equal(answered.vectors, expected.vectors)


@pytest.mark.parametrize("kind", ["wrong_count", "duplicate", "nan", "truncated"])
def test_vectors_that_cannot_be_right_are_a_bad_response(
    simulator: SimulatorProcess, kind: str
) -> None:
    simulator.control({"kind": kind})

    with pytest.raises(BadResponse) as caught:
        embed(simulator.url, ["a", "b", "c"])

    assert caught.value.transient
    assert simulator.stats()["requests"] == 1


@pytest.mark.parametrize(
    "data",
    [
        [{"index": 0, "embedding": "AACAPw=="}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 2, "embedding": "AACAPw=="}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AACAPwAAgD8="}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AAC"}],
        [{"index": 0, "embedding": "AACAPw=="}, {"index": 1, "embedding": "AA CAPw=="}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": []}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [1e39]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1, "embedding": [None]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 1}],
        [{"embedding": [1.0]}, {"embedding": [1.0]}],
        {"0": "AACAPw=="},
        None,
    ],
)
def test_embedding_data_of_another_form_is_a_bad_response(data: object) -> None:
    server = CannedServer(http(json.dumps({"data": data})))

    with pytest.raises(BadResponse):
        asyncio.run(server.use(lambda service: service.embed(["a", "b"], EMBEDDING, None)))


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (["x" * 32_769], ContextTooLong),
        (["x" * 32_768] * 37, ContextTooLong),
        (["x"] * 2_049, InvalidProviderRequest),
        ([""], InvalidProviderRequest),
        ([], InvalidProviderRequest),
    ],
)
def test_requests_over_the_limits_are_refused(
    simulator: SimulatorProcess, texts: list[str], kind: type[ProviderError]
) -> None:
    with pytest.raises(ProviderError) as caught:
        embed(simulator.url, texts)

    assert type(caught.value) is kind
    assert simulator.ledger() == {}


# Errors


@pytest.mark.parametrize(
    ("fault", "kind", "wait"),
    [
        ({"status": 400}, InvalidProviderRequest, None),
        ({"status": 400, "code": "context_length_exceeded"}, ContextTooLong, None),
        ({"status": 400, "code": "max_tokens_per_request"}, ContextTooLong, None),
        ({"status": 400, "message": "the maximum context length is 9"}, ContextTooLong, None),
        ({"status": 401}, AuthenticationFailed, None),
        ({"status": 402}, QuotaExhausted, None),
        ({"status": 403}, Denied, None),
        ({"status": 404}, ModelNotFound, None),
        ({"status": 408}, ProviderTimeout, None),
        ({"status": 409}, Overloaded, None),
        ({"status": 413}, ContextTooLong, None),
        ({"status": 422}, InvalidProviderRequest, None),
        ({"status": 429}, RateLimited, None),
        ({"status": 429, "retry_after": 2}, RateLimited, 2.0),
        ({"status": 429, "retry_after_ms": 50}, RateLimited, 0.05),
        ({"status": 429, "retry_after_ms": 50, "retry_after": 1}, RateLimited, 0.05),
        ({"status": 429, "retry_after": -3}, RateLimited, None),
        ({"status": 429, "retry_after": 1_900_000_000}, RateLimited, None),
        ({"status": 429, "retry_after": "inf", "retry_after_ms": "inf"}, RateLimited, None),
        ({"status": 429, "retry_after": 2, "retry_after_ms": 1.9e12}, RateLimited, 2.0),
        ({"status": 429, "retry_after": 43_200}, RateLimited, 43_200.0),
        ({"status": 429, "retry_after": "soon"}, RateLimited, None),
        ({"status": 429, "code": "insufficient_quota", "retry_after": 2}, QuotaExhausted, None),
        ({"status": 500}, ServerBroke, None),
        ({"status": 502}, ServerBroke, None),
        ({"status": 503, "retry_after": 7}, Overloaded, 7.0),
        ({"status": 504}, ServerBroke, None),
        ({"status": 529}, Overloaded, None),
        ({"status": 599}, ServerBroke, None),
    ],
)
def test_a_refusal_becomes_our_error(
    simulator: SimulatorProcess,
    fault: dict[str, Any],
    kind: type[ProviderError],
    wait: float | None,
) -> None:
    simulator.control({"kind": "status", "message": "about 'the sky'", **fault})

    error = failure(simulator.url)

    assert type(error) is kind
    assert error.retry_after == wait
    assert error.status == fault["status"]
    assert error.request_id is not None
    assert error.request_id in str(error)
    assert error.__cause__ is not None
    assert error.detail is not None
    assert fault.get("message", "the sky") in error.detail
    assert "sky" not in str(error)
    assert "context length" not in str(error)
    # The SDK must not try again on its own: every try is ours to count and to limit.
    assert simulator.stats()["requests"] == 1
    assert simulator.ledger() == {}


def test_which_errors_may_pass_by_themselves() -> None:
    passing = {RateLimited, Overloaded, ProviderTimeout, ConnectionFailed, BadResponse}
    lasting = {
        AuthenticationFailed,
        QuotaExhausted,
        InvalidProviderRequest,
        ContextTooLong,
        ContentRefused,
    }

    assert all(kind.transient for kind in passing)
    assert not any(kind.transient for kind in lasting)


def test_a_detail_is_capped_and_can_be_stored(simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "status", "status": 500, "message": "long" * 10_000})
    detail = failure(simulator.url).detail
    assert detail is not None
    assert len(detail) == LONGEST_DETAIL

    with pytest.raises(Overloaded) as caught:
        canned(http("a\0b", "500 Oops", "text/plain"))
    assert caught.value.detail == "a\ufffdb"


def test_a_request_id_carries_nothing_else() -> None:
    answer = http("{}", "500 Oops").replace(b"req_canned", b"you asked about the sky")

    with pytest.raises(Overloaded) as caught:
        canned(answer)

    assert caught.value.request_id is None
    assert "sky" not in str(caught.value)


def test_a_missing_model_is_named_as_the_likely_reason(simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "status", "status": 404})

    assert "the model may not exist" in str(failure(simulator.url))


def test_a_reset_connection_is_a_failed_connection(simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "reset"})

    assert type(failure(simulator.url)) is ConnectionFailed
    assert simulator.stats()["requests"] == 1


def test_nobody_listening_is_a_failed_connection() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"

        assert type(failure(url)) is NeverSent


@pytest.mark.parametrize("fault", [{"kind": "hang"}, {"kind": "billed_timeout"}, {"kind": "drip"}])
def test_a_late_answer_is_a_timeout(simulator: SimulatorProcess, fault: dict[str, Any]) -> None:
    simulator.control(fault)

    error = failure(simulator.url, timeout=0.2)

    assert type(error) is ProviderTimeout
    assert simulator.stats()["requests"] == 1
    assert len(simulator.ledger()) == (0 if fault["kind"] == "hang" else 1)
    simulator.wait_until_idle()


def test_cancelling_closes_the_call_at_once(simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "hang"})

    async def cancel(service: OpenAIService) -> LLMResponse:
        call = asyncio.create_task(service.generate_text(REQUEST, None))
        await asyncio.to_thread(simulator.wait_until_busy)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # The service is still open: it's the call that must have let go of its connection.
        await asyncio.to_thread(simulator.wait_until_idle)
        return await service.generate_text(REQUEST, None)

    assert use(simulator.url, cancel).text
    assert simulator.stats()["by_status"] == {"aborted": 1, "200": 1}


# The client


def test_two_hundred_calls_in_flight_keep_their_connections() -> None:
    async def burst(service: OpenAIService) -> None:
        for _ in range(2):
            calls = [service.generate_text(REQUEST, None) for _ in range(200)]
            await asyncio.gather(*calls)

    with ForkedSimulator(latency=0.5) as slow:
        use(slow.url, burst, timeout=60.0)
        stats = slow.stats()

    assert stats["requests"] == 400
    # A slow machine may not get all 200 out before the first is answered.
    assert 100 < stats["peak_in_flight"] <= 200
    assert stats["connections"] <= 200


def test_without_a_key_the_error_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")

    async def ask() -> None:
        service = OpenAIService()
        with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
            await service.generate_text(REQUEST, None)
        with pytest.raises(AuthenticationFailed, match="OPENAI_API_KEY"):
            await service.embed(["a"], EMBEDDING, None)
        assert not await service.is_available()
        await service.aclose()

    asyncio.run(ask())


def test_a_key_that_no_header_can_carry_is_an_authentication_error() -> None:
    async def ask() -> None:
        service = OpenAIService(api_key="sk-\u043a\u043b\u044e\u0447")
        with pytest.raises(AuthenticationFailed) as caught:
            await service.generate_text(REQUEST, None)
        assert "\u043a" not in str(caught.value)

    asyncio.run(ask())


def test_a_compatible_server_is_not_sent_the_key_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http('{"data": []}'))
        writer.close()
        await writer.wait_closed()

    async def ask() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        service = OpenAIService(base_url=f"http://127.0.0.1:{port}/v1")
        async with server:
            assert await service.is_available()
            await service.aclose()

    asyncio.run(ask())
    assert b"GET /v1/models" in heads[0]
    assert b"sk-secret" not in heads[0]


def test_our_key_is_not_sent_to_an_address_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, simulator: SimulatorProcess
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setattr(OpenAIService, "official_url", simulator.url)

    async def ask() -> None:
        service = OpenAIService(api_key="sk-test")
        assert (await service.generate_text(REQUEST, None)).text
        await service.aclose()

    asyncio.run(ask())


def test_availability_is_what_the_provider_says(simulator: SimulatorProcess) -> None:
    async def ask_three_times(service: OpenAIService) -> list[bool]:
        return [await service.is_available() for _ in range(3)]

    simulator.control({"kind": "none"}, {"kind": "status", "status": 401}, {"kind": "hang"})

    assert use(simulator.url, ask_three_times, timeout=0.3) == [True, False, False]


def test_a_closed_service_opens_again(simulator: SimulatorProcess) -> None:
    async def close_and_ask(service: OpenAIService) -> LLMResponse:
        await service.generate_text(REQUEST, None)
        await service.aclose()
        await service.aclose()
        return await service.generate_text(REQUEST, None)

    assert use(simulator.url, close_and_ask).text


@pytest.mark.parametrize(
    ("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("ж" * 4, 2)]
)
def test_tokens_are_a_quarter_of_the_bytes(text: str, tokens: int) -> None:
    assert OpenAIService().estimate_tokens(text) == tokens


# The simulator


def test_a_shorter_vector_is_the_scaled_start_of_the_longer() -> None:
    body = {"model": EMBEDDING, "input": "a", "dimensions": 8}

    (item,) = embeddings(ProviderRequest(body, {}, NO_FAULT)).body["data"]

    start = vector_for(EMBEDDING, "a")[:8]
    np.testing.assert_allclose(item["embedding"], start / np.linalg.norm(start), rtol=1e-6)


def test_a_fault_that_does_not_exist_is_refused(simulator: SimulatorProcess) -> None:
    for fault in ({"kind": "rest"}, {"kind": "reset", "second": 1}):
        with pytest.raises(HTTPError) as caught:
            simulator.control(fault)
        assert caught.value.status == 400
        caught.value.close()


# Retry-After


@given(st.text(), st.text())
@example("Mon, 01 Jan 0001 00:00:00 +2359", "nan")
@example("Fri, 31 Dec 9999 23:59:59 -2359", "-inf")
@example("9" * 5_000, "1e999")
def test_any_retry_after_is_none_or_a_sane_wait(plain: str, milliseconds: str) -> None:
    wait = retry_after({"retry-after": plain, "retry-after-ms": milliseconds}, NOW)

    assert wait is None or 0 <= wait <= MOST_CREDIBLE_WAIT


@given(st.floats(min_value=0, max_value=MOST_CREDIBLE_WAIT))
def test_seconds_and_milliseconds_are_read(seconds: float) -> None:
    assert retry_after({"retry-after": str(seconds)}, NOW) == seconds
    wait = retry_after({"retry-after-ms": str(seconds * 1_000), "retry-after": "9"}, NOW)
    assert wait is not None
    assert math.isclose(wait, seconds, abs_tol=1e-300)


@given(st.integers(min_value=-100_000, max_value=100_000))
def test_an_http_date_is_read_as_the_time_until_then(seconds: int) -> None:
    then = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)

    wait = retry_after({"retry-after": then}, NOW)

    assert wait == (seconds if 0 <= seconds <= MOST_CREDIBLE_WAIT else None)


@given(st.floats(max_value=-1e-300))
def test_a_negative_wait_counts_as_not_said(seconds: float) -> None:
    assert retry_after({"retry-after": str(seconds), "retry-after-ms": str(seconds)}, NOW) is None
