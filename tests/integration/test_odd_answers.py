"""Providers' answers of any form, over the real SDKs: what was paid for is kept, or said to lack.

ODD_EXAMPLES=20000 makes so many of them, new ones each time.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.generation import result_of
from services.json_text import dump_json
from services.llm.anthropic import AnthropicService
from services.llm.base import EmbeddingResponse, LLMResponse, LLMService, TokenCount
from services.llm.errors import (
    ProviderError,
)
from services.llm.gemini import GeminiService
from services.llm.openai import OpenAIService
from services.llm.reading import MOST_TOKENS
from services.llm.requests import GenerationRequest
from services.text import check_name, check_storable_json
from tests.odd_server import OddAnswer, OddServer, Place, base64_of, odd_answers

EXAMPLES = int(os.environ.get("ODD_EXAMPLES", "600"))
SERVICES: dict[str, Callable[..., LLMService]] = {
    "openai": OpenAIService,
    "anthropic": AnthropicService,
    "gemini": GeminiService,
}
T = TypeVar("T")
SAID = "The sky is blue."
CALL = {"name": "look", "arguments": {"color": "blue"}}
TEXTS = ["one", "two", "three"]
VECTORS = [[1.0, 2.0], [0.5, -3.0], [4.0, 0.25]]


@dataclass(frozen=True)
class Wire:
    """A way to ask, its right answer, and where in it stands what was paid for."""

    provider: str
    right: dict[str, Any]
    paid: tuple[Place, ...]
    """With what says what kind of thing it is."""
    usage: Place
    options: tuple[tuple[str, str], ...] = ()
    wants: str = "text"

    @property
    def ask(self) -> Callable[[LLMService], Awaitable[LLMResponse | EmbeddingResponse]]:
        if self.wants == "vectors":
            return lambda llm: llm.embed(TEXTS, "m", None)
        request = GenerationRequest(
            provider=self.provider, model="m", prompt="Why?", options=dict(self.options)
        )
        return lambda llm: llm.generate_text(request, None)


def chat(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "refusal": None, **message},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def responses(*output: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-5-mini",
        "output": list(output),
        "usage": {
            "input_tokens": 5,
            "output_tokens": 3,
            "input_tokens_details": {"cached_tokens": 2},
        },
    }


def message(*content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": list(content),
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 3},
    }


def gemini(*parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "candidates": [
            {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {
            "promptTokenCount": 5,
            "candidatesTokenCount": 3,
            "totalTokenCount": 8,
            "cachedContentTokenCount": 2,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-1",
    }


FUNCTION = {"name": "look", "arguments": '{"color": "blue"}'}
CHAT_CALL = ("choices", 0, "message", "tool_calls", 0, "function")
GEMINI_PART = ("candidates", 0, "content", "parts", 0)
RESPONSES = (("api", "responses"),)
WIRES = {
    "chat": Wire(
        "openai", chat({"content": SAID}), (("choices", 0, "message", "content"),), ("usage",)
    ),
    "chat-parts": Wire(
        "openai",
        chat({"content": [{"type": "text", "text": SAID[:7]}, {"type": "text", "text": SAID[7:]}]}),
        (("choices", 0, "message", "content"),),
        ("usage",),
    ),
    "chat-call": Wire(
        "openai",
        chat(
            {"content": None, "tool_calls": [{"id": "a", "type": "function", "function": FUNCTION}]}
        ),
        ((*CHAT_CALL, "name"), (*CHAT_CALL, "arguments")),
        ("usage",),
        wants="call",
    ),
    "responses": Wire(
        "openai",
        responses(
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": SAID}]},
        ),
        (
            ("output", 1, "content", 0, "text"),
            ("output", 1, "content", 0, "type"),
            ("output", 1, "type"),
            ("output", 0, "type"),
        ),
        ("usage",),
        RESPONSES,
    ),
    "responses-call": Wire(
        "openai",
        responses({"type": "function_call", "call_id": "a", **FUNCTION}),
        (("output", 0, "name"), ("output", 0, "arguments"), ("output", 0, "type")),
        ("usage",),
        RESPONSES,
        wants="call",
    ),
    "anthropic": Wire(
        "anthropic",
        message({"type": "text", "text": SAID}),
        (("content", 0, "text"), ("content", 0, "type")),
        ("usage",),
    ),
    "anthropic-call": Wire(
        "anthropic",
        message({"type": "tool_use", "id": "a", "name": "look", "input": {"color": "blue"}}),
        (("content", 0, "name"), ("content", 0, "input"), ("content", 0, "type")),
        ("usage",),
        wants="call",
    ),
    "gemini": Wire(
        "gemini",
        gemini({"text": SAID}),
        ((*GEMINI_PART, "text"), (*GEMINI_PART, "thought")),
        ("usageMetadata",),
    ),
    "gemini-call": Wire(
        "gemini",
        gemini({"functionCall": {"name": "look", "args": {"color": "blue"}}}),
        ((*GEMINI_PART, "functionCall", "name"), (*GEMINI_PART, "functionCall", "args")),
        ("usageMetadata",),
        wants="call",
    ),
    "openai-vectors": Wire(
        "openai",
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 1, "embedding": VECTORS[1]},
                {"object": "embedding", "index": 0, "embedding": base64_of(VECTORS[0])},
                {"object": "embedding", "index": 2, "embedding": base64_of(VECTORS[2])},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        },
        tuple(("data", row, name) for row in range(3) for name in ("index", "embedding")),
        ("usage",),
        wants="vectors",
    ),
    "openai-vectors-in-order": Wire(
        "openai",
        {"data": [{"embedding": vector} for vector in VECTORS], "usage": {"prompt_tokens": 5}},
        tuple(("data", row, name) for row in range(3) for name in ("index", "embedding")),
        ("usage",),
        wants="vectors",
    ),
    "gemini-vectors": Wire(
        "gemini",
        {"embeddings": [{"values": vector} for vector in VECTORS]},
        tuple(("embeddings", row, "values") for row in range(3)),
        ("none",),
        wants="vectors",
    ),
}


OFTEN = settings(
    max_examples=EXAMPLES // len(WIRES),
    deadline=None,
    derandomize="ODD_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Asker:
    """Asks an odd server by each provider's service, on one loop."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        self.server = OddServer()
        self._services: dict[str, LLMService] = {}

    def start(self) -> None:
        self._runner.run(self.server.start())
        self._services = {
            name: service(api_key="sk-test", base_url=self.server.url, timeout=10)
            for name, service in SERVICES.items()
        }

    def stop(self) -> None:
        for service in self._services.values():
            self._runner.run(service.aclose())
        self._runner.run(self.server.stop())

    def ask(self, wire: Wire, answer: OddAnswer) -> LLMResponse | EmbeddingResponse | ProviderError:
        """What comes of an answer; any other exception is a bug."""
        return self.ask_raw(wire, answer.wire())

    def ask_raw(self, wire: Wire, answer: bytes) -> LLMResponse | EmbeddingResponse | ProviderError:
        """The same for bytes."""
        before = self.server.calls
        outcome = self._run(wire.provider, answer, wire.ask)
        assert self.server.calls == before + 1, "paid more than once"
        return outcome

    def looks(self, provider: str, answer: OddAnswer) -> bool:
        """Whether the provider is available."""
        found = self._run(provider, answer.wire(), lambda llm: llm.is_available())
        assert not isinstance(found, ProviderError)
        return found

    def counts(self, provider: str, answer: OddAnswer) -> TokenCount | ProviderError:
        """How many tokens a text is, as the provider says."""
        return self._run(provider, answer.wire(), lambda llm: llm.count_tokens("Why?", "m"))

    def _run(
        self, provider: str, answer: bytes, work: Callable[[LLMService], Awaitable[T]]
    ) -> T | ProviderError:
        self.server.answer = answer

        async def run() -> T | ProviderError:
            try:
                return await work(self._services[provider])
            except ProviderError as error:
                return error

        return self._runner.run(run())


@pytest.fixture(scope="module")
def asker() -> Iterator[Asker]:
    with asyncio.Runner() as runner:
        asker = Asker(runner)
        asker.start()
        yield asker
        asker.stop()


@pytest.mark.parametrize("name", WIRES)
def test_an_answer_is_used_whatever_stands_beside_what_was_paid_for(
    name: str, asker: Asker
) -> None:
    wire = WIRES[name]

    @given(odd_answers(wire.right))
    @OFTEN
    def check(answer: OddAnswer) -> None:
        outcome = asker.ask(wire, answer)
        if isinstance(outcome, ProviderError):
            assert not answer.spares(wire.paid), f"thrown away: {outcome} ({outcome.detail})"
            assert_can_be_recorded(outcome)
        elif isinstance(outcome, EmbeddingResponse):
            assert np.isfinite(outcome.vectors).all()
            if answer.spares(wire.paid):
                np.testing.assert_array_equal(outcome.vectors, np.array(VECTORS, np.float32))
        else:
            assert_can_be_stored(outcome)
            if answer.spares(wire.paid):
                assert_says_what_was_said(wire, outcome)
        if not isinstance(outcome, ProviderError) and answer.spares([wire.usage]):
            assert_used(wire, outcome)

    check()


STATUSES = st.sampled_from(
    [201, 204, 300, 304, 400, 401, 403, 404, 408, 413, 418, 422, 429, 451, 500, 502, 503, 529, 599]
)
ERRORS = {
    "openai": {"error": {"message": "No.", "type": "bad", "code": "odd", "param": None}},
    "anthropic": {"type": "error", "error": {"type": "odd", "message": "No."}},
    "gemini": {
        "error": {
            "code": 400,
            "message": "No.",
            "status": "ODD",
            "details": [{"@type": "any", "reason": "ODD", "retryDelay": "3.5s"}],
        }
    },
}


@pytest.mark.parametrize("name", ["chat", "anthropic", "gemini", "openai-vectors"])
def test_a_refusal_of_any_form_is_an_error_of_ours(name: str, asker: Asker) -> None:
    wire = WIRES[name]

    @given(odd_answers(ERRORS[wire.provider]), STATUSES | st.just(200))
    @OFTEN
    def check(answer: OddAnswer, status: int) -> None:
        outcome = asker.ask(wire, replace(answer, status=status))
        assert isinstance(outcome, ProviderError)
        assert_can_be_recorded(outcome)

    check()


BROKEN = {
    "no status": b"HTTP/1.1 \r\n\r\n",
    "not HTTP": b"220 mail.example.org ESMTP\r\n\r\n",
    "no gzip": b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
    "no brotli": b"HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\n{}",
    "no chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "no length": b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{}",
    "nowhere": b"HTTP/1.1 302 Found\r\nlocation: ::::\r\ncontent-length: 0\r\n\r\n",
    "other place": b"HTTP/1.1 302 Found\r\nlocation: ftp://x/\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("name", ["chat", "anthropic", "gemini", "gemini-vectors"])
@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_no_http_is_an_error_of_ours(name: str, fault: str, asker: Asker) -> None:
    outcome = asker.ask_raw(WIRES[name], BROKEN[fault])
    assert isinstance(outcome, ProviderError)
    assert_can_be_recorded(outcome)


@pytest.mark.parametrize("provider", SERVICES)
def test_counting_and_looking_survive_any_answer(provider: str, asker: Asker) -> None:
    right = {"input_tokens": 3, "totalTokens": 3, "data": [{"id": "m"}], "models": []}

    @given(odd_answers(right), STATUSES | st.just(200))
    @OFTEN
    def check(answer: OddAnswer, status: int) -> None:
        answer = replace(answer, status=status)
        assert asker.looks(provider, answer) in {True, False}
        counted = asker.counts(provider, answer)
        assert isinstance(counted, ProviderError) or counted.tokens >= 0

    check()


def assert_says_what_was_said(wire: Wire, outcome: LLMResponse) -> None:
    if wire.wants == "text":
        assert outcome.text == SAID
    else:
        calls = [{name: call[name] for name in CALL} for call in outcome.tool_calls]
        assert CALL in calls
        assert all(call["id"] for call in outcome.tool_calls)


def assert_used(wire: Wire, outcome: LLMResponse | EmbeddingResponse) -> None:
    if isinstance(outcome, LLMResponse):
        used = (outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens)
        assert used == (5, 3, 2)
    elif wire.provider == "openai":
        assert outcome.input_tokens == 5


def assert_can_be_stored(outcome: LLMResponse) -> None:
    result: Any = result_of(outcome)
    dump_json(result)
    check_name(outcome.model, "The model")
    check_name(outcome.finish_reason, "The reason")
    assert len(outcome.model) + len(outcome.finish_reason) <= 400
    tokens = (outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens)
    assert all(
        count is None or (type(count) is int and 0 <= count <= 2 * MOST_TOKENS) for count in tokens
    )
    assert len(outcome.note) < 2_000


def assert_can_be_recorded(error: ProviderError) -> None:
    for text in (str(error), error.detail, error.note, error.request_id):
        check_storable_json(text, "The error")
    assert "Why?" not in str(error)
    assert math.isfinite(error.retry_after or 0)
