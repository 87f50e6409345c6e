"""The simulator's streams, each read by the unchanged official SDK."""

from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from google.genai import types

from promptstack.simulator.answers import text_for
from promptstack.simulator.process import SimulatorProcess
from tests.integration.llm.test_simulator_wires import (
    CLAUDE,
    GEMINI,
    GPT,
    PROMPT,
    ask_anthropic,
    ask_gemini,
    ask_openai,
    running,
    simulator,
)

__all__ = ["running", "simulator"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:Inheritance class AiohttpClientSession",
    "ignore:Sending a large body directly with raw bytes",
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"at": {"type": "string"}},
    "required": ["at"],
}
Told = tuple[list[str], Any, int]
"""The pieces of text, what else it came to, and the tokens of the answer."""


def chat(simulator: SimulatorProcess, **more: Any) -> Told:
    async def read(client: openai.AsyncOpenAI) -> Told:
        async with client.chat.completions.stream(
            model=GPT,
            messages=[{"role": "user", "content": PROMPT}],
            stream_options={"include_usage": True},
            **more,
        ) as stream:
            texts = [event.delta async for event in stream if event.type == "content.delta"]
            whole = await stream.get_final_completion()
            assert whole.usage is not None
            return texts, whole.choices[0], whole.usage.completion_tokens

    return ask_openai(simulator, read)


def response(simulator: SimulatorProcess, **more: Any) -> Told:
    async def read(client: openai.AsyncOpenAI) -> Told:
        async with client.responses.stream(model=GPT, input=PROMPT, **more) as stream:
            texts = [
                event.delta async for event in stream if event.type == "response.output_text.delta"
            ]
            whole = await stream.get_final_response()
            assert whole.usage is not None
            return texts, whole.output[0], whole.usage.output_tokens

    return ask_openai(simulator, read)


def responses(simulator: SimulatorProcess, **more: Any) -> list[Any]:
    """The events of a response as they come; the SDK's helper wants all of them to be completed."""

    async def read(client: openai.AsyncOpenAI) -> list[Any]:
        stream = await client.responses.create(model=GPT, input=PROMPT, stream=True, **more)
        return [event async for event in stream]

    return ask_openai(simulator, read)


def message(simulator: SimulatorProcess, **more: Any) -> Told:
    async def read(client: anthropic.AsyncAnthropic) -> Told:
        async with client.messages.stream(
            model=CLAUDE,
            messages=[{"role": "user", "content": PROMPT}],
            **{"max_tokens": 100, **more},
        ) as stream:
            texts = [text async for text in stream.text_stream]
            whole = await stream.get_final_message()
            return texts, whole, whole.usage.output_tokens

    return ask_anthropic(simulator, read)


def content(simulator: SimulatorProcess, **config: Any) -> Told:
    async def read(client: Any) -> Told:
        settings = types.GenerateContentConfig(**config)
        stream = await client.models.generate_content_stream(
            model=GEMINI, contents=PROMPT, config=settings
        )
        events = [event async for event in stream]
        texts = [event.text for event in events if event.text]
        [call] = events[0].function_calls or [None]
        return texts, call, events[-1].usage_metadata.candidates_token_count

    return ask_gemini(simulator, read)


WIRES: dict[str, tuple[Callable[..., Told], str]] = {
    "openai-chat": (chat, GPT),
    "openai-responses": (response, GPT),
    "anthropic": (message, CLAUDE),
    "gemini": (content, GEMINI),
}
of_all = pytest.mark.parametrize(("ask", "model"), WIRES.values(), ids=WIRES)


@of_all
def test_a_text_comes_in_pieces_with_its_usage(
    simulator: SimulatorProcess, ask: Callable[..., Told], model: str
) -> None:
    texts, _, tokens = ask(simulator)
    assert "".join(texts) == text_for(model, [PROMPT])
    assert len(texts) > 3
    assert tokens == -(-len(text_for(model, [PROMPT])) // 4)
    assert simulator.stats()["by_status"] == {"200": 1}


def test_a_call_of_a_tool_comes_in_pieces(simulator: SimulatorProcess) -> None:
    function = {"name": "look", "parameters": PARAMETERS}
    tools: Any = [{"type": "function", "function": function}]
    _, choice, _ = chat(simulator, tools=tools)
    assert choice.message.tool_calls[0].function.name == "look"
    assert choice.finish_reason == "tool_calls"
    _, item, _ = response(simulator, tools=[{"type": "function", **function}])
    assert (item.type, item.name) == ("function_call", "look")
    _, whole, _ = message(simulator, tools=[{"name": "look", "input_schema": PARAMETERS}])
    assert whole.content[0].input.keys() == {"at"}
    declared = types.FunctionDeclaration(name="look", parameters_json_schema=PARAMETERS)
    _, call, _ = content(
        simulator,
        tools=[types.Tool(function_declarations=[declared])],
        automatic_function_calling={"disable": True},
    )
    assert call.args.keys() == {"at"}


def test_an_answer_that_is_cut_by_its_bound_says_so(simulator: SimulatorProcess) -> None:
    assert message(simulator, max_tokens=4)[1].stop_reason == "max_tokens"
    last = responses(simulator, max_output_tokens=4)[-1]
    assert last.type == "response.incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (chat, openai.APIError),
        (message, anthropic.APIStatusError),
    ],
    ids=["openai-chat", "anthropic"],
)
def test_an_error_in_the_middle_is_one_of_the_sdk(
    simulator: SimulatorProcess, ask: Callable[..., Told], error: type[Exception]
) -> None:
    simulator.control({"kind": "error_event", "status": 529, "message": "busy"})
    with pytest.raises(error, match="busy"):
        ask(simulator)
    assert simulator.stats()["by_status"] == {"aborted": 1}
    assert list(simulator.ledger().values()) == [1]


def test_a_response_ends_with_its_error(simulator: SimulatorProcess) -> None:
    simulator.control({"kind": "error_event", "status": 500, "message": "broke"})
    last = responses(simulator)[-1]
    assert (last.type, last.message) == ("error", "broke")


def test_pieces_come_at_their_pace(simulator: SimulatorProcess) -> None:
    simulator.set_latency(0.0, piece_seconds=0.01)
    try:
        assert len(message(simulator)[0]) > 3
    finally:
        simulator.set_latency(0.0)
