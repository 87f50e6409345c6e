"""The simulator's wires, each read by the unchanged official SDK."""

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import anthropic
import httpx2
import numpy as np
import openai
import pytest
from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from promptstack.simulator.answers import text_for, vector_for
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.process import SimulatorProcess
from tests.processes import read_line
from tests.simulators import ForkedSimulator

GPT = "gpt-5-mini"
CLAUDE = "claude-haiku-4-5"
GEMINI = "gemini-2.5-flash"
GEMINI_EMBEDDING = "gemini-embedding-2"
PROMPT = "Why is the sky blue?"
UNKNOWN = "unknown-model"
PROMPTSTACK = str(Path(sys.executable).with_name("promptstack"))

# These warnings are google-genai's own doing, and this is about the SDK as it is.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession",
    "ignore:Sending a large body directly with raw bytes",
)

T = TypeVar("T")


class Colour(BaseModel):
    name: str


class Sky(BaseModel):
    colour: Colour
    shades: list[Colour]
    below: "Sky | None"


@pytest.fixture(scope="module")
def running() -> Iterator[SimulatorProcess]:
    with ForkedSimulator() as simulator:
        yield simulator


@pytest.fixture
def simulator(running: SimulatorProcess) -> SimulatorProcess:
    running.wait_until_idle()
    running.reset()
    return running


def ask_openai(
    simulator: SimulatorProcess, work: Callable[[openai.AsyncOpenAI], Awaitable[T]]
) -> T:
    async def run() -> T:
        async with openai.AsyncOpenAI(
            api_key="k", base_url=simulator.url, max_retries=0, timeout=30
        ) as client:
            return await work(client)

    return asyncio.run(run())


def ask_anthropic(
    simulator: SimulatorProcess, work: Callable[[anthropic.AsyncAnthropic], Awaitable[T]]
) -> T:
    async def run() -> T:
        async with anthropic.AsyncAnthropic(
            api_key="k", base_url=simulator.origin, max_retries=0, timeout=30
        ) as client:
            return await work(client)

    return asyncio.run(run())


def ask_gemini(
    simulator: SimulatorProcess, work: Callable[[genai.client.AsyncClient], Awaitable[T]]
) -> T:
    async def run() -> T:
        options = types.HttpOptions(base_url=simulator.origin, timeout=30_000)
        client = genai.Client(api_key="k", http_options=options).aio
        try:
            return await work(client)
        finally:
            await client.aclose()

    return asyncio.run(run())


def chat(simulator: SimulatorProcess, model: str = GPT, prompt: str = PROMPT, **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": prompt}]
    return ask_openai(
        simulator, lambda c: c.chat.completions.create(model=model, messages=messages, **more)
    )


def message(
    simulator: SimulatorProcess, model: str = CLAUDE, content: Any = PROMPT, **more: Any
) -> Any:
    messages: Any = [{"role": "user", "content": content}]
    more.setdefault("max_tokens", 100)
    return ask_anthropic(
        simulator, lambda c: c.messages.create(model=model, messages=messages, **more)
    )


def generate(
    simulator: SimulatorProcess, model: str = GEMINI, contents: Any = PROMPT, **config: Any
) -> types.GenerateContentResponse:
    settings = types.GenerateContentConfig(**config)
    return ask_gemini(
        simulator,
        lambda c: c.models.generate_content(model=model, contents=contents, config=settings),
    )


def contents(texts: list[str]) -> list[Any]:
    return [types.Content(parts=[types.Part(text=text)]) for text in texts]


def embed_gemini(simulator: SimulatorProcess, given: Any, **config: Any) -> list[list[float]]:
    settings = types.EmbedContentConfig(**config)
    answer = ask_gemini(
        simulator,
        lambda c: c.models.embed_content(model=GEMINI_EMBEDDING, contents=given, config=settings),
    )
    return [each.values or [] for each in answer.embeddings or []]


# OpenAI


def test_openai_chat(simulator: SimulatorProcess) -> None:
    answer = chat(simulator)

    assert answer.choices[0].message.content == text_for(GPT, [PROMPT])
    assert (answer.usage.prompt_tokens, answer.choices[0].finish_reason) == (5, "stop")
    assert answer._request_id.startswith("req_")
    assert simulator.ledger() == {billing_key("/v1/chat/completions", GPT, PROMPT): 1}


def test_openai_chat_parses_a_model_of_pydantic(simulator: SimulatorProcess) -> None:
    answer = ask_openai(
        simulator,
        lambda c: c.chat.completions.parse(
            model=GPT, messages=[{"role": "user", "content": PROMPT}], response_format=Sky
        ),
    )

    assert isinstance(answer.choices[0].message.parsed, Sky)


def test_openai_chat_calls_a_tool(simulator: SimulatorProcess) -> None:
    function = {"name": "look", "parameters": Sky.model_json_schema()}
    answer = chat(simulator, tools=[{"type": "function", "function": function}])

    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "look"
    Sky.model_validate_json(call.function.arguments)


def test_openai_responses(simulator: SimulatorProcess) -> None:
    answer = ask_openai(
        simulator, lambda c: c.responses.create(model=GPT, input=PROMPT, instructions="Be brief.")
    )

    assert answer.output_text == text_for(GPT, ["Be brief.", PROMPT])
    assert answer.status == "completed"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_openai_responses_parse_call_and_are_cut(simulator: SimulatorProcess) -> None:
    parsed = ask_openai(
        simulator, lambda c: c.responses.parse(model=GPT, input=PROMPT, text_format=Sky)
    )
    tool: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}}
    called = ask_openai(
        simulator, lambda c: c.responses.create(model=GPT, input=PROMPT, tools=[tool])
    )
    cut = ask_openai(
        simulator, lambda c: c.responses.create(model=GPT, input=PROMPT, max_output_tokens=2)
    )

    assert isinstance(parsed.output_parsed, Sky)
    assert called.output[0].type == "function_call"
    assert cut.incomplete_details is not None
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


@pytest.mark.parametrize("form", ["float", "base64"])
def test_openai_embeddings(simulator: SimulatorProcess, form: Any) -> None:
    answer = ask_openai(
        simulator,
        lambda c: c.embeddings.create(model="m", input=["a", "b"], encoding_format=form),
    )

    second: Any = answer.data[1].embedding
    if form == "base64":
        assert (type(second), len(second)) == (str, 4 * math.ceil(1_536 * 4 / 3))
    else:
        np.testing.assert_array_equal(np.array(second, np.float32), vector_for("m", "b"))


def test_the_large_model_of_openai_has_larger_vectors(simulator: SimulatorProcess) -> None:
    large = "text-embedding-3-large"
    answers = [
        ask_openai(simulator, lambda c: c.embeddings.create(model=large, input=["a"])),
        ask_openai(
            simulator, lambda c: c.embeddings.create(model=large, input=["a"], dimensions=8)
        ),
    ]

    assert [len(answer.data[0].embedding) for answer in answers] == [3_072, 8]


# Anthropic


def test_anthropic_messages(simulator: SimulatorProcess) -> None:
    blocks = [{"type": "text", "text": PROMPT}]
    answers = [
        message(simulator, system="Be brief."),
        message(simulator, content=blocks, system=[{"type": "text", "text": "Be brief."}]),
    ]

    for answer in answers:
        assert answer.content[0].text == text_for(CLAUDE, ["Be brief.", PROMPT])
        assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", 8)
        assert answer._request_id.startswith("req_")
    key = billing_key("/v1/messages", CLAUDE, f"Be brief.\n{PROMPT}")
    assert simulator.ledger() == {key: 2}
    assert message(simulator, max_tokens=2).stop_reason == "max_tokens"


def test_anthropic_calls_a_tool(simulator: SimulatorProcess) -> None:
    tool = {"name": "look", "input_schema": Sky.model_json_schema()}
    answer = message(simulator, tools=[tool])

    assert answer.stop_reason == "tool_use"
    assert answer.content[0].name == "look"
    Sky.model_validate(answer.content[0].input)


def test_anthropic_counts_tokens_for_nothing(simulator: SimulatorProcess) -> None:
    simulator.set_limits(requests_per_minute=1, burst_seconds=1)
    for _ in range(3):
        counted = ask_anthropic(
            simulator,
            lambda c: c.messages.count_tokens(
                model=CLAUDE, messages=[{"role": "user", "content": PROMPT}]
            ),
        )
        assert counted.input_tokens == 5
    assert simulator.ledger() == {}


# Gemini


def test_gemini_generates(simulator: SimulatorProcess) -> None:
    answer = generate(
        simulator,
        system_instruction="Be brief.",
        thinking_config=types.ThinkingConfig(thinking_budget=100),
    )

    assert answer.text == text_for(GEMINI, ["Be brief.", PROMPT])
    usage = answer.usage_metadata
    assert usage is not None
    assert (usage.prompt_token_count, usage.thoughts_token_count) == (8, 16)
    (candidate,) = answer.candidates or []
    assert candidate.finish_reason is types.FinishReason.STOP
    (cut,) = generate(simulator, max_output_tokens=2).candidates or []
    assert cut.finish_reason is types.FinishReason.MAX_TOKENS


def test_gemini_parses_a_model_of_pydantic(simulator: SimulatorProcess) -> None:
    answer = generate(
        simulator,
        response_mime_type="application/json",
        response_json_schema=Sky.model_json_schema(),
    )
    other = generate(simulator, response_mime_type="application/json", response_schema=Colour)

    Sky.model_validate_json(answer.text or "")
    assert other.parsed == Colour(name="simulated")


def test_gemini_calls_a_tool(simulator: SimulatorProcess) -> None:
    text = types.Schema(type=types.Type.STRING)
    parameters = types.Schema(type=types.Type.OBJECT, properties={"colour": text})
    function = types.FunctionDeclaration(name="look", parameters=parameters)

    answer = generate(simulator, tools=[types.Tool(function_declarations=[function])])

    (call,) = answer.function_calls or []
    assert (call.name, call.args) == ("look", {"colour": "simulated"})


def test_gemini_embeds_each_content_and_strings_as_one(simulator: SimulatorProcess) -> None:
    vectors = embed_gemini(simulator, contents(["a", "b"]), output_dimensionality=8)

    assert [len(vector) for vector in vectors] == [8, 8]
    second = np.array(vectors[1], np.float32)
    np.testing.assert_array_equal(second, vector_for(GEMINI_EMBEDDING, "b", 8))
    # As the service does: the SDK joins strings into one content.
    assert len(embed_gemini(simulator, ["a", "b"])) == 1


def test_gemini_counts_and_lists(simulator: SimulatorProcess) -> None:
    counted = ask_gemini(simulator, lambda c: c.models.count_tokens(model=GEMINI, contents=PROMPT))

    async def names(client: genai.client.AsyncClient) -> list[str | None]:
        return [model.name async for model in await client.models.list()]

    assert counted.total_tokens == 5
    assert f"models/{GEMINI}" in ask_gemini(simulator, names)


@pytest.mark.parametrize(
    ("kind", "matches"),
    [
        ("wrong_count", lambda vectors, good: vectors == good[:1]),
        ("shuffled", lambda vectors, good: vectors == good[::-1]),
        ("nan", lambda vectors, good: math.isnan(vectors[0][0]) and len(vectors) == len(good)),
        ("short", lambda vectors, good: vectors == [vector[:-1] for vector in good]),
    ],
)
def test_gemini_vectors_go_wrong(
    simulator: SimulatorProcess, kind: str, matches: Callable[[Any, Any], bool]
) -> None:
    good = embed_gemini(simulator, contents(["a", "b"]))
    simulator.control({"kind": kind})

    assert matches(embed_gemini(simulator, contents(["a", "b"])), good)


# All


def test_content_is_refused_in_each_providers_form(simulator: SimulatorProcess) -> None:
    simulator.control(*[{"kind": "refused"}] * 3)

    assert chat(simulator).choices[0].message.refusal
    assert message(simulator).stop_reason == "refusal"
    blocked = generate(simulator).prompt_feedback
    assert blocked is not None
    assert blocked.block_reason is types.BlockedReason.SAFETY


def refusals(simulator: SimulatorProcess) -> list[Any]:
    """Ask every provider, and return what their SDKs raise."""
    raised: list[Any] = []
    for ask in (chat, message, generate):
        with pytest.raises((openai.APIError, anthropic.APIError, errors.APIError)) as caught:
            ask(simulator)
        raised.append(caught.value)
    return raised


@pytest.mark.parametrize(
    ("status", "kinds"),
    [
        (400, (openai.BadRequestError, anthropic.BadRequestError, "INVALID_ARGUMENT")),
        (401, (openai.AuthenticationError, anthropic.AuthenticationError, "UNAUTHENTICATED")),
        (403, (openai.PermissionDeniedError, anthropic.PermissionDeniedError, "PERMISSION_DENIED")),
        (429, (openai.RateLimitError, anthropic.RateLimitError, "RESOURCE_EXHAUSTED")),
        (500, (openai.InternalServerError, anthropic.InternalServerError, "INTERNAL")),
        (503, (openai.InternalServerError, anthropic.InternalServerError, "UNAVAILABLE")),
        (529, (openai.InternalServerError, anthropic.APIStatusError, "UNKNOWN")),
    ],
)
def test_each_status_is_an_error_of_the_sdk(
    simulator: SimulatorProcess, status: int, kinds: tuple[Any, Any, str]
) -> None:
    simulator.control(*[{"kind": "status", "status": status}] * 3)

    of_openai, of_anthropic, of_gemini = refusals(simulator)

    assert isinstance(of_openai, kinds[0])
    assert isinstance(of_anthropic, kinds[1])
    assert (of_gemini.code, of_gemini.status) == (status, kinds[2])
    assert of_anthropic.body["request_id"] == of_anthropic.request_id


def test_an_unknown_model_is_a_404(simulator: SimulatorProcess) -> None:
    with pytest.raises(openai.NotFoundError):
        chat(simulator, UNKNOWN)
    with pytest.raises(anthropic.NotFoundError):
        message(simulator, UNKNOWN)
    with pytest.raises(errors.ClientError, match="NOT_FOUND"):
        generate(simulator, UNKNOWN)


def test_spent_quota_has_each_providers_form(simulator: SimulatorProcess) -> None:
    spent = {"kind": "status", "status": 429, "code": "insufficient_quota"}
    simulator.control(spent, {**spent, "status": 400}, spent)

    of_openai, of_anthropic, of_gemini = refusals(simulator)

    assert of_openai.code == "insufficient_quota"
    assert "credit balance is too low" in of_anthropic.message
    assert "PerDay" in json.dumps(of_gemini.details)


def test_an_input_over_the_context_is_refused(simulator: SimulatorProcess) -> None:
    prompt = "x" * 4 * 1_048_577

    with pytest.raises(openai.BadRequestError) as caught:
        chat(simulator, prompt=prompt)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        message(simulator, content=prompt)
    with pytest.raises(errors.ClientError, match="exceeds the maximum number of tokens"):
        generate(simulator, contents=prompt)
    assert simulator.ledger() == {}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": GPT, "messages": ["hello"]}),
        ("/v1/responses", {"model": GPT, "input": [3]}),
        ("/v1/embeddings", {"model": GPT, "input": ["a"], "dimensions": -1}),
        ("/v1/messages", {"model": CLAUDE, "max_tokens": 5, "messages": [{"role": "user"}]}),
        ("/v1/messages", {"model": CLAUDE, "messages": [{"role": "user", "content": "a"}]}),
        (f"/v1beta/models/{GEMINI}:generateContent", {"contents": [None]}),
        (f"/v1/models/{GEMINI}:batchEmbedContents", {"requests": [{}]}),
    ],
)
def test_a_request_of_the_wrong_form_is_a_400(
    simulator: SimulatorProcess, path: str, body: object
) -> None:
    with httpx2.Client(trust_env=False) as client:
        answer = client.post(simulator.origin + path, json=body)

    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("form", ["seconds", "milliseconds", "none"])
def test_limits_say_how_they_stand_and_when_to_come_again(
    simulator: SimulatorProcess, form: str
) -> None:
    simulator.set_limits(requests_per_minute=1, tokens_per_minute=10_000, retry_after=form)
    for ask in (chat, message, generate):
        ask(simulator)

    of_openai, of_anthropic, of_gemini = refusals(simulator)

    told = {"seconds": ["retry-after"], "milliseconds": ["retry-after", "retry-after-ms"]}
    for error in (of_openai, of_anthropic):
        said = [name for name in error.response.headers if name.startswith("retry-after")]
        assert sorted(said) == told.get(form, [])
    assert of_openai.response.headers["x-ratelimit-remaining-requests"] == "0"
    assert of_anthropic.response.headers["anthropic-ratelimit-requests-limit"] == "1"
    assert of_anthropic.response.headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    assert ("RetryInfo" in json.dumps(of_gemini.details)) == (form != "none")
    assert "retry-after" not in of_gemini.response.headers
    assert simulator.stats()["admitted"]["requests"] == 3


def test_the_limit_of_tokens_has_a_type_of_its_own(simulator: SimulatorProcess) -> None:
    simulator.set_limits(tokens_per_minute=10, model=GPT)

    with pytest.raises(openai.RateLimitError) as caught:
        chat(simulator, prompt="x" * 100)

    assert (caught.value.type, caught.value.code) == ("tokens", "rate_limit_exceeded")
    assert "retry-after" not in caught.value.response.headers
    assert simulator.ledger() == {}


def test_a_fault_hits_only_the_endpoint_and_model_it_names(simulator: SimulatorProcess) -> None:
    simulator.control(
        {"kind": "status", "endpoint": "/messages"}, {"kind": "status", "model": GEMINI}
    )

    assert chat(simulator).choices
    with pytest.raises(errors.ServerError):
        generate(simulator)
    with pytest.raises(anthropic.InternalServerError):
        message(simulator)


def test_what_was_paid_twice_is_told_apart(simulator: SimulatorProcess) -> None:
    for prompt in ("once", "twice", "twice"):
        chat(simulator, prompt=prompt)

    key = billing_key("/v1/chat/completions", GPT, "twice")
    assert simulator.ledger(times=2) == {key: 2}


def test_a_taken_port_is_one_line_and_sigterm_ends_it_well(simulator: SimulatorProcess) -> None:
    command = [PROMPTSTACK, "simulator", "--port"]
    port = simulator.origin.rpartition(":")[2]
    refused = subprocess.run(
        [*command, port], check=False, capture_output=True, text=True, timeout=60
    )
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert f"can't listen on port {port}" in refused.stderr

    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(read_line(process.stdout, "its address"))["url"].endswith("/v1")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
