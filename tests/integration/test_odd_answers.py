"""Providers' answers of any form, over the real SDKs: what was paid for is kept, or said to lack.

ODD_EXAMPLES=20000 makes so many of them, new ones each time.
"""

import asyncio
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from services.generation import result_of
from services.json_text import dump_json
from services.llm.anthropic import AnthropicService
from services.llm.base import EmbeddingResponse, LLMResponse, LLMService
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
        self.server.answer, before = answer.wire(), self.server.calls

        async def ask() -> LLMResponse | EmbeddingResponse | ProviderError:
            try:
                return await wire.ask(self._services[wire.provider])
            except ProviderError as error:
                return error

        outcome = self._runner.run(ask())
        assert self.server.calls == before + 1, "paid more than once"
        return outcome


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

    @settings(
        max_examples=EXAMPLES // len(WIRES),
        deadline=None,
        derandomize="ODD_EXAMPLES" not in os.environ,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(odd_answers(wire.right))
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
