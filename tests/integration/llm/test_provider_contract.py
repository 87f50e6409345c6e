"""One contract for all providers: each service, by its unchanged SDK, against the simulator."""

import asyncio
import math
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    ContextTooLong,
    InvalidProviderRequest,
    ModelNotFound,
    ModelQuotaExhausted,
    NeverSent,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.parameters import Tool
from promptstack.services.llm.requests import GenerationRequest, Message, ToolCall
from promptstack.simulator.answers import text_for, vector_for
from promptstack.simulator.process import SimulatorProcess
from tests.simulators import ForkedSimulator

API_KEY = "sk-never-to-be-seen"
PROMPT = "Why is the sky blue?"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"color": {"type": "string"}, "sure": {"type": "boolean"}},
    "required": ["color", "sure"],
    "additionalProperties": False,
}

T = TypeVar("T")


@dataclass(frozen=True)
class Kind:
    """A way to ask a provider."""

    name: str
    service: Callable[..., LLMService]
    model: str
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()
    tells_limits: bool = True

    def request(self, **fields: Any) -> GenerationRequest:
        given = {"prompt": PROMPT, "options": dict(self.options), **fields}
        return GenerationRequest(provider=self.name, model=self.model, **given)


OPENAI_TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
    {"role": "user", "content": "What color?", "name": None},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": id_, "type": "function", "function": {"name": "look", "arguments": "{}"}}
            for id_ in ("call_1", "call_2")
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Blue."},
    {"role": "tool", "tool_call_id": "call_2", "content": ""},
]
OPENAI_TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}

CHAT = Kind("openai", OpenAIService, "gpt-5-mini", "/v1")
RESPONSES = Kind("openai", OpenAIService, "gpt-5-mini", "/v1", (("api", "responses"),))
ANTHROPIC = Kind("anthropic", AnthropicService, "claude-haiku-4-5")
GEMINI = Kind("gemini", GeminiService, "gemini-2.5-flash", tells_limits=False)
KINDS = [CHAT, RESPONSES, ANTHROPIC, GEMINI]
EMBEDDERS = [
    Kind("openai", OpenAIService, "text-embedding-3-small", "/v1"),
    Kind("gemini", GeminiService, "gemini-embedding-001", tells_limits=False),
    Kind("gemini", GeminiService, "gemini-embedding-2", tells_limits=False),
]
of_all = pytest.mark.parametrize(
    "kind", KINDS, ids=["openai-chat", "openai-responses", "anthropic", "gemini"]
)
of_embedders = pytest.mark.parametrize("kind", EMBEDDERS, ids=lambda kind: kind.model)


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.wait_until_idle()
    running.reset()
    return running


def use(
    kind: Kind,
    simulator: SimulatorProcess,
    work: Callable[[LLMService], Awaitable[T]],
    timeout: float = 10.0,
) -> T:
    """Do `work` with a service on a loop of its own, and close it."""

    async def run() -> T:
        service = kind.service(
            api_key=API_KEY, base_url=f"{simulator.origin}{kind.path}", timeout=timeout
        )
        try:
            return await work(service)
        finally:
            await service.aclose()

    return asyncio.run(run())


def generate(
    kind: Kind, simulator: SimulatorProcess, timeout: float = 10.0, **fields: Any
) -> LLMResponse:
    request = kind.request(**fields)
    return use(kind, simulator, lambda llm: llm.generate_text(request, None), timeout)


def embed(
    kind: Kind, simulator: SimulatorProcess, texts: list[str], timeout: float = 10.0
) -> EmbeddingResponse:
    return use(kind, simulator, lambda llm: llm.embed(texts, kind.model, None), timeout)


# Success


@of_all
def test_a_generation_is_answered_with_its_usage(kind: Kind, simulator: SimulatorProcess) -> None:
    answer = generate(kind, simulator)
    assert answer.text == text_for(kind.model, [PROMPT])
    assert (answer.model, answer.finish_reason) == (kind.model, "stop")
    assert answer.input_tokens == math.ceil(len(PROMPT) / 4)
    assert answer.output_tokens == math.ceil(len(answer.text) / 4)
    assert answer.cached_tokens == 0
    assert answer.provider_request_id
    assert answer.latency_seconds > 0
    assert list(simulator.ledger().values()) == [1]


@of_all
def test_the_system_prompt_and_all_turns_arrive(kind: Kind, simulator: SimulatorProcess) -> None:
    turns = (
        Message(role="user", content="One"),
        Message(role="assistant", content="Two"),
        Message(role="user", content="Three"),
    )
    answer = generate(kind, simulator, prompt=None, messages=turns, system="Be brief.")
    assert answer.text == text_for(kind.model, ["Be brief.", "One", "Two", "Three"])


@of_all
def test_a_longest_answer_is_kept_and_told(kind: Kind, simulator: SimulatorProcess) -> None:
    answer = generate(kind, simulator, max_tokens=3, temperature=0.5)
    assert (answer.finish_reason, answer.output_tokens) == ("length", 3)


@of_all
def test_an_answer_follows_a_json_schema(kind: Kind, simulator: SimulatorProcess) -> None:
    answer = generate(kind, simulator, json_schema=SCHEMA)
    assert answer.text == '{"color": "simulated", "sure": true}'


@of_all
def test_a_tool_is_called_and_its_result_is_taken(kind: Kind, simulator: SimulatorProcess) -> None:
    tool = Tool(name="look", description="Look up.", parameters=SCHEMA)
    asked = generate(kind, simulator, tools=(tool,), tool_choice="look")
    [call] = asked.tool_calls
    assert (call["name"], call["arguments"]) == ("look", {"color": "simulated", "sure": True})
    assert (asked.text, asked.finish_reason) == ("", "tool_calls") or kind is RESPONSES
    turns = (
        Message(role="user", content=PROMPT),
        Message(role="assistant", tool_calls=(ToolCall.model_validate(call),)),
        Message(role="tool", tool_call_id=str(call["id"]), content="Blue."),
    )
    answer = generate(kind, simulator, prompt=None, messages=turns, tools=(tool,))
    assert (answer.tool_calls, answer.finish_reason) == ((), "stop")
    assert answer.text


@of_all
def test_a_conversation_of_openais_clients_is_answered(
    kind: Kind, simulator: SimulatorProcess
) -> None:
    answer = generate(kind, simulator, prompt=None, messages=OPENAI_TALK, tools=[OPENAI_TOOL])
    assert (answer.tool_calls, answer.finish_reason) == ((), "stop")
    assert answer.text


@of_all
def test_cached_tokens_are_told(kind: Kind, simulator: SimulatorProcess) -> None:
    system = "[cached]" + "x" * 400
    answer = generate(kind, simulator, system=system)
    assert answer.cached_tokens == math.ceil(len(system) / 4)
    assert answer.input_tokens == answer.cached_tokens + math.ceil(len(PROMPT) / 4)


@of_all
def test_the_headers_tell_of_limits(kind: Kind, simulator: SimulatorProcess) -> None:
    tokens = (
        {"input_tokens_per_minute": 60_000, "output_tokens_per_minute": 6_000}
        if kind is ANTHROPIC
        else {"tokens_per_minute": 60_000}
    )
    simulator.set_limits(requests_per_minute=600, **tokens)
    answer = generate(kind, simulator)
    assert answer.limits is not None
    told = answer.limits.limits
    if not kind.tells_limits:
        assert told == {}
        return
    assert (told["requests"].limit, told["requests"].remaining) == (600, 599)
    if kind is ANTHROPIC:
        # A token a millisecond comes back while the answer is made.
        assert 60_000 - (answer.input_tokens or 0) <= told["input"].remaining < 60_000
        assert told["output"].limit == 6_000
    else:
        assert 60_000 - (answer.tokens_used or 0) <= told["tokens"].remaining < 60_000


@of_all
def test_many_calls_share_their_connections(kind: Kind, simulator: SimulatorProcess) -> None:
    async def work(llm: LLMService) -> None:
        for _ in range(2):
            await asyncio.gather(*(llm.generate_text(kind.request(), None) for _ in range(20)))

    use(kind, simulator, work)
    assert simulator.stats()["connections"] <= 20


@of_all
def test_it_says_whether_it_is_available(kind: Kind, simulator: SimulatorProcess) -> None:
    assert use(kind, simulator, lambda llm: llm.is_available())
    simulator.control({"kind": "status", "status": 500})
    assert not use(kind, simulator, lambda llm: llm.is_available())


@of_all
def test_tokens_are_counted(kind: Kind, simulator: SimulatorProcess) -> None:
    counted = use(kind, simulator, lambda llm: llm.count_tokens(PROMPT, kind.model))
    assert counted.tokens == 5
    assert counted.is_exact is (kind.name != "openai")
    assert simulator.ledger() == {}


# Errors


def status(number: int, **more: Any) -> dict[str, Any]:
    return {"kind": "status", "status": number, **more}


REFUSALS: list[tuple[str, dict[str, Any], type[ProviderError], float | None]] = [
    ("limit in seconds", status(429, retry_after=2), RateLimited, 2.0),
    ("limit in ms", status(429, retry_after=1, retry_after_ms=50), RateLimited, 0.05),
    ("limit without time", status(429), RateLimited, None),
    ("quota", status(429, code="insufficient_quota", retry_after=2), QuotaExhausted, None),
    ("server error", status(500), ServerBroke, None),
    ("unavailable", status(503, retry_after=7), Overloaded, 7.0),
    ("overloaded", status(529), Overloaded, None),
    ("gateway", status(502), ServerBroke, None),
    ("wrong key", status(401), AuthenticationFailed, None),
    ("wrong request", status(400), InvalidProviderRequest, None),
    ("no such model", status(404), ModelNotFound, None),
    ("too long", status(400, code="context_length_exceeded"), ContextTooLong, None),
    ("too large", status(413), ContextTooLong, None),
    ("refused", {"kind": "refused"}, ContentRefused, None),
    ("no answer in it", {"kind": "wrong_count"}, BadResponse, None),
    ("half of it", {"kind": "truncated"}, BadResponse, None),
    ("reset", {"kind": "reset"}, ConnectionFailed, None),
]


@of_all
@pytest.mark.parametrize(
    ("fault", "error", "wait"),
    [refusal[1:] for refusal in REFUSALS],
    ids=[refusal[0] for refusal in REFUSALS],
)
def test_each_refusal_has_its_error(
    kind: Kind,
    simulator: SimulatorProcess,
    fault: dict[str, Any],
    error: type[ProviderError],
    wait: float | None,
) -> None:
    simulator.control(fault)
    with pytest.raises(error) as caught:
        generate(kind, simulator)
    raised = caught.value
    # Gemini counts a day's requests by model.
    of_model = kind is GEMINI and error is QuotaExhausted
    assert type(raised) is (ModelQuotaExhausted if of_model else error)
    assert raised.retry_after == wait
    assert raised.__cause__ is not None or fault["kind"] == "refused"
    said = str(raised)
    assert said.endswith(".")
    assert said.startswith((kind.name, "The connection to"))
    assert API_KEY not in said + (raised.detail or "")
    assert PROMPT not in said
    if fault["kind"] == "status":
        assert raised.status == fault["status"]
        assert raised.request_id
    # The SDK's own retries are off.
    assert simulator.stats()["requests"] == 1


@of_all
def test_a_429_of_the_real_limit_says_when_to_come_again(
    kind: Kind, simulator: SimulatorProcess
) -> None:
    simulator.set_limits(requests_per_minute=60, burst_seconds=1, retry_after="milliseconds")
    generate(kind, simulator)
    with pytest.raises(RateLimited) as caught:
        generate(kind, simulator)
    assert 0 < (caught.value.retry_after or 0) <= 1.0
    assert caught.value.limits is not None
    if kind.tells_limits:
        assert caught.value.limits.limits["requests"].remaining == 0


@of_all
@pytest.mark.parametrize("fault", ["hang", "billed_timeout", "drip"])
def test_a_call_that_takes_too_long_is_given_up(
    kind: Kind, simulator: SimulatorProcess, fault: str
) -> None:
    simulator.control({"kind": fault, "seconds": 30})
    with pytest.raises(ProviderTimeout, match="may still be billed"):
        generate(kind, simulator, timeout=0.3)
    # The connection is closed: nobody waits for the answer.
    simulator.wait_until_idle()
    assert sum(simulator.ledger().values()) == (0 if fault == "hang" else 1)


@of_all
def test_a_cancelled_call_closes_its_connection(kind: Kind, simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "hang"})

    async def work(llm: LLMService) -> None:
        call = asyncio.create_task(llm.generate_text(kind.request(), None))
        await asyncio.to_thread(simulator.wait_until_busy)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(simulator.wait_until_idle)

    use(kind, simulator, work)


@of_all
def test_nobody_there_is_a_failed_connection(kind: Kind, simulator: SimulatorProcess) -> None:
    async def run() -> None:
        service = kind.service(api_key=API_KEY, base_url=f"http://127.0.0.1:1{kind.path}")
        with pytest.raises(ConnectionFailed):
            await service.generate_text(kind.request(), None)
        await service.aclose()

    asyncio.run(run())


@of_all
def test_without_a_key_nothing_is_sent(kind: Kind) -> None:
    with pytest.raises(AuthenticationFailed, match="needs an API key"):
        asyncio.run(kind.service().generate_text(kind.request(), None))
    with pytest.raises(AuthenticationFailed, match="characters"):
        asyncio.run(kind.service(api_key="schlüssel").generate_text(kind.request(), None))


@of_all
def test_a_key_has_a_fingerprint_that_does_not_tell_it(kind: Kind) -> None:
    one, same, other = (kind.service(api_key=key).credential for key in (API_KEY, API_KEY, "x"))
    assert one == same != other
    assert API_KEY[:6] not in one
    assert kind.service().credential == "none"


@of_all
def test_options_of_ours_are_not_taken_from_the_caller(kind: Kind, running: object) -> None:
    service_class: Any = kind.service
    for option in ("model", "messages", "stream") if kind is not GEMINI else ("tools", "seed"):
        with pytest.raises(InvalidInput):
            service_class.check_request(kind.request(options={**dict(kind.options), option: 1}))


def test_what_a_provider_does_not_support_is_refused_and_not_dropped() -> None:
    wrong: list[tuple[Any, GenerationRequest, str]] = [
        (AnthropicService, ANTHROPIC.request(seed=0), "seed"),
        (AnthropicService, ANTHROPIC.request(temperature=1.5), "temperatures"),
        (AnthropicService, ANTHROPIC.request(max_tokens=30_000), "at most 21,333"),
        (OpenAIService, RESPONSES.request(stop=("x",)), "stop"),
        (OpenAIService, RESPONSES.request(seed=0), "seed"),
        (OpenAIService, CHAT.request(options={"api": "other"}), "api"),
    ]
    late = (Message(role="user", content="x"), Message(role="system", content="y"))
    for kind in (ANTHROPIC, GEMINI):
        moved = kind.request(prompt=None, messages=late)
        wrong.append((kind.service, moved, "only at the start"))
        alone = kind.request(prompt=None, messages=late[1:])
        wrong.append((kind.service, alone, "beside the system prompt"))
    for service, request, said in wrong:
        with pytest.raises(InvalidInput, match=said):
            service.check_request(request)


@pytest.mark.parametrize(
    ("kind", "option"),
    [
        (ANTHROPIC, {"output_config": {"effort": "low"}}),
        (RESPONSES, {"text": {"verbosity": "low"}}),
    ],
    ids=["anthropic", "openai-responses"],
)
def test_an_option_beside_a_json_schema_does_not_take_its_place(
    kind: Kind, option: dict[str, Any], simulator: SimulatorProcess
) -> None:
    options = {**dict(kind.options), **option}
    answer = generate(kind, simulator, json_schema=SCHEMA, options=options)
    assert answer.text == '{"color": "simulated", "sure": true}'


@of_all
def test_a_large_prompt_arrives(kind: Kind, simulator: SimulatorProcess) -> None:
    prompt = "x" * 2_000_000
    assert generate(kind, simulator, prompt=prompt).input_tokens == 500_000


def test_without_its_encoding_tiktoken_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would download one."""
    (tmp_path / "something-else").touch()
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: pytest.fail("asked"))
    counted = asyncio.run(OpenAIService().count_tokens("abcdefgh", "gpt-5-mini"))
    assert (counted.tokens, counted.is_exact) == (2, False)


# Embeddings


@of_embedders
def test_vectors_come_in_the_order_of_the_texts(kind: Kind, simulator: SimulatorProcess) -> None:
    texts = [f"text {number}" for number in range(7)]
    answer = embed(kind, simulator, texts)
    dimensions = answer.vectors.shape[1]
    assert answer.vectors.dtype == np.float32
    for text, vector in zip(texts, answer.vectors, strict=True):
        np.testing.assert_allclose(vector, vector_for(kind.model, text, dimensions), atol=1e-6)
    # OpenAI counts all texts together, Gemini says nothing and each is estimated.
    assert answer.input_tokens == (11 if kind.name == "openai" else 14)
    assert set(simulator.ledger().values()) == {1}
    assert len(simulator.ledger()) == 7


@of_embedders
def test_one_text_has_one_vector(kind: Kind, simulator: SimulatorProcess) -> None:
    assert embed(kind, simulator, ["alone"]).vectors.shape[0] == 1


@of_embedders
@pytest.mark.parametrize("fault", ["wrong_count", "nan", "truncated"])
def test_vectors_that_are_wrong_are_never_returned(
    kind: Kind, simulator: SimulatorProcess, fault: str
) -> None:
    simulator.control({"kind": fault})
    with pytest.raises(BadResponse):
        embed(kind, simulator, ["one", "two", "three"])


@of_embedders
def test_vectors_of_another_length_are_refused(kind: Kind, simulator: SimulatorProcess) -> None:
    """Of a model whose vectors are known to have one length."""
    simulator.control({"kind": "short"})
    with pytest.raises(BadResponse) as caught:
        embed(kind, simulator, ["one", "two"])
    assert "dimensions" in (caught.value.detail or "")


@of_embedders
@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (status(429, retry_after=2), RateLimited),
        (status(429, code="insufficient_quota"), QuotaExhausted),
        (status(503), Overloaded),
        (status(401), AuthenticationFailed),
        (status(400), InvalidProviderRequest),
        ({"kind": "reset"}, ConnectionFailed),
    ],
    ids=["limit", "quota", "unavailable", "key", "request", "reset"],
)
def test_errors_of_embeddings_are_told_apart(
    kind: Kind, simulator: SimulatorProcess, fault: dict[str, Any], error: type[ProviderError]
) -> None:
    simulator.control(fault)
    with pytest.raises(error):
        embed(kind, simulator, ["one", "two"])
    assert simulator.stats()["requests"] == 1


def test_anthropic_has_no_embeddings(simulator: SimulatorProcess) -> None:
    with pytest.raises(InvalidProviderRequest, match="no embedding"):
        embed(ANTHROPIC, simulator, ["one"])


@of_all
def test_nobody_listening_is_never_billed(kind: Kind) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}{kind.path}"

        async def ask() -> None:
            service = kind.service(api_key=API_KEY, base_url=url)
            try:
                await service.generate_text(kind.request(), None)
            finally:
                await service.aclose()

        with pytest.raises(NeverSent):
            asyncio.run(ask())
