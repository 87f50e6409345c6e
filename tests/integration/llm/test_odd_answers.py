"""Providers' answers of any form, over the real SDKs: what was paid for is kept, or said to lack.

ODD_EXAMPLES=20000 makes so many of them, new ones each time.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.execution.generation import result_of
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse, TokenCount
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import (
    ProviderError,
)
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.reading import MOST_TOKENS
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.text import check_name, check_storable_json
from promptstack.services.validation.json_text import dump_json
from tests.odd_answers import (
    CALL,
    EMBEDDED,
    OFTEN,
    SAID,
    VECTORS,
    WIRES,
    OddAnswer,
    Wire,
    odd_answers,
)
from tests.odd_server import OddServer

SERVICES: dict[str, Callable[..., LLMService]] = {
    "openai": OpenAIService,
    "anthropic": AnthropicService,
    "gemini": GeminiService,
}
T = TypeVar("T")


def asking(wire: Wire) -> Callable[[LLMService], Awaitable[LLMResponse | EmbeddingResponse]]:
    """How what is asked by a wire."""
    if wire.wants == "vectors":
        return lambda llm: llm.embed(EMBEDDED, "m", None)
    request = GenerationRequest(
        provider=wire.provider, model="m", prompt="Why?", options=dict(wire.options)
    )
    return lambda llm: llm.generate_text(request, None)


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
        outcome = self._run(wire.provider, answer, asking(wire))
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
    else:
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
