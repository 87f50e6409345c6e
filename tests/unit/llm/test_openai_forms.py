"""Turns, tools and calls as OpenAI's clients write them, and what each wire makes of them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.llm import anthropic, gemini, request_turns
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.openai import chat as openai_chat
from promptstack.services.llm.openai import responses as openai_responses
from promptstack.services.llm.requests import GenerationRequest, Message
from promptstack.services.sources.reading import BadRecord
from promptstack.services.sources.records import checked_messages

DUMPED: dict[str, Any] = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
EMPTY: dict[str, Any] = {"refusal": "", "reasoning_content": "", "thinking_blocks": []}
"""What other servers' answers have beside them, where there is nothing of it."""
"""What the SDK's `message.model_dump()` has beside role and content."""
TALK: list[dict[str, Any]] = [
    {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [{"type": "text", "text": "Zürich"}, {"type": "text", "text": "?"}],
    },
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call.{number}",
                "type": "function",
                "function": {"name": "look", "arguments": f'{{"city": "Zürich", "n": {number}}}'},
            }
            for number in (1, 2)
        ],
        **DUMPED,
    },
    {"role": "tool", "tool_call_id": "call.1", "name": "look", "content": "12 °C"},
    {"role": "tool", "tool_call_id": "call.2", "content": [{"type": "text", "text": ""}]},
    {"role": "assistant", "content": None, "refusal": "No.", "tool_calls": None},
    {"role": "user", "content": "Why?", "name": None},
]
CANONICAL: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Zürich\n?"},
    {
        "role": "assistant",
        "tool_calls": [
            {"id": f"call.{number}", "name": "look", "arguments": {"city": "Zürich", "n": number}}
            for number in (1, 2)
        ],
    },
    {"role": "tool", "tool_call_id": "call.1", "name": "look", "content": "12 °C"},
    {"role": "tool", "tool_call_id": "call.2"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Why?"},
]
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": None, "parameters": {}, "strict": None},
}


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"provider": "p", "model": "m", "messages": TALK, **fields})


def test_a_conversation_of_openais_clients_is_ours() -> None:
    assert checked_messages(TALK, 10_000) == CANONICAL
    assert checked_messages(CANONICAL, 10_000) == CANONICAL


def test_an_answer_of_openais_sdk_is_a_turn() -> None:
    from_sdk = ChatCompletionMessage.model_validate({**TALK[2], "annotations": None})
    [ours] = request(messages=[from_sdk]).messages
    assert ours == Message.model_validate(CANONICAL[2])
    assert request(messages=[ours]).messages == (ours,)


def test_what_is_empty_beside_an_answer_is_not_there() -> None:
    said = Message.model_validate({"role": "assistant", "content": "So.", **EMPTY})
    assert said == Message(role="assistant", content="So.")


def test_each_wire_has_the_calls_and_their_results() -> None:
    asked = request(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look"}})
    for service in (OpenAIService, AnthropicService, GeminiService):
        service.check_request(asked)

    turns = openai_chat.body(asked)["messages"]
    assert [turn["role"] for turn in turns] == [turn["role"] for turn in CANONICAL]
    # As the model wrote it: what it reads again is what it said.
    assert turns[2]["content"] is None
    assert turns[2]["tool_calls"][0] == {
        "id": "call.1",
        "type": "function",
        "function": {"name": "look", "arguments": '{"city":"Zürich","n":1}'},
    }
    assert turns[3:5] == [
        {"role": "tool", "tool_call_id": "call.1", "name": "look", "content": "12 °C"},
        {"role": "tool", "tool_call_id": "call.2", "content": ""},
    ]

    items = openai_responses.body(asked)["input"]
    assert [item.get("type", item.get("role")) for item in items] == [
        "system",
        "user",
        *["function_call"] * 2,
        *["function_call_output"] * 2,
        "assistant",
        "user",
    ]
    assert items[2]["arguments"] == '{"city":"Zürich","n":1}'
    assert items[4] == {"type": "function_call_output", "call_id": "call.1", "output": "12 °C"}

    body = anthropic._body(asked)
    assert body["system"] == "Be brief."
    assert body["tool_choice"] == {"type": "tool", "name": "look"}
    used, result = body["messages"][1]["content"][0], body["messages"][2]["content"][0]
    assert used["input"] == {"city": "Zürich", "n": 1}
    assert used["id"] == result["tool_use_id"] == "call_1"  # it takes no dots

    contents = gemini._contents(asked.turns())
    assert [content.role for content in contents] == ["user", "model", "user", "model", "user"]
    results = [part.function_response for part in contents[2].parts or []]
    assert [(one.name, one.response) for one in results if one] == [
        ("look", {"result": "12 °C"}),
        ("look", {"result": ""}),
    ]


def test_who_speaks_is_told_where_that_can_be_said() -> None:
    named = request(messages=[{"role": "user", "name": "Ann", "content": "Hi"}])
    OpenAIService.check_request(named)
    [turn] = openai_chat.body(named)["messages"]
    assert turn == {"role": "user", "name": "Ann", "content": "Hi"}
    for service, options in (
        (AnthropicService, {}),
        (GeminiService, {}),
        (OpenAIService, {"api": "responses"}),
    ):
        with pytest.raises(InvalidInput, match="leave name out"):
            service.check_request(named.model_copy(update={"options": options}))


def test_a_strict_tool_is_strict_or_refused() -> None:
    function = {"name": "look", "strict": True}
    asked = request(
        tools=[{"type": "function", **function}, {"type": "function", "function": function}]
    )
    flat, nested = asked.tools
    assert flat == nested
    assert openai_chat.body(asked)["tools"][0]["function"]["strict"] is True
    assert openai_responses.body(asked)["tools"][0]["strict"] is True
    assert anthropic._body(asked)["tools"][0]["strict"] is True
    with pytest.raises(InvalidInput, match="no strict tools"):
        GeminiService.check_request(asked)
    loose = openai_chat.body(request(tools=[TOOL]))["tools"][0]["function"]
    assert "strict" not in loose


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "only text"),
        ({"content": [{"type": "text", "text": 1}]}, "only text"),
        ({"content": ["text"]}, "only text"),
        ({"content": [{"type": "text", "text": "a", "cache_control": {"a": 1}}]}, "more than its"),
        ({"content": []}, "content is empty"),
        ({"content": None}, "content is empty"),
        ({"content": "a", "refusal": "b"}, "either content or a refusal"),
        ({"content": "a", "audio": {"id": "x"}}, "audio can't be handed on"),
        ({"content": "a", "function_call": {"name": "x"}}, "function_call can't be handed on"),
        ({"content": "a", "reasoning_content": "hm"}, "reasoning_content can't be"),
        ({"content": "a", "unknown": 1}, "Extra inputs"),
        ({"tool_calls": [{"id": "1", "type": "custom", "custom": {}}]}, "of the type function"),
        ({"tool_calls": [{"id": "1", "function": "look"}]}, "function must be an object"),
        (
            {"tool_calls": [{"id": "1", "name": "a", "function": {"name": "b"}}]},
            "beside function and in it",
        ),
        *(
            (
                {"tool_calls": [{"id": "1", "function": {"name": "a", "arguments": arguments}}]},
                "must be a JSON object",
            )
            for arguments in ("{", "[1]", '"x"')
        ),
    ],
)
def test_what_cannot_be_handed_on_is_refused_by_name(turn: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Message.model_validate({"role": "assistant", **turn})
    with pytest.raises(BadRecord, match=reason):
        checked_messages([{"role": "assistant", **turn}], 1_000_000)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("[" * 10_000, "nested too deep"),
        ('{"a": ' + "9" * 5_000 + "}", "too many digits"),
        ('{"a": 1, "a": 2}', "a name twice"),
        ('{"a": NaN}', "NaN"),
    ],
)
def test_arguments_that_cannot_be_kept_as_they_are_are_refused(arguments: str, reason: str) -> None:
    call = {"id": "1", "function": {"name": "a", "arguments": arguments}}
    with pytest.raises(InvalidInput, match=reason):
        checked_messages([{"role": "assistant", "tool_calls": [call]}], 1_000_000)


def test_arguments_in_a_string_are_counted_before_they_are_made() -> None:
    most = request_turns.MAX_ARGUMENT_VALUES

    def talk(arguments: str) -> list[dict[str, Any]]:
        call = {"id": "1", "function": {"name": "a", "arguments": arguments}}
        return [{"role": "assistant", "tool_calls": [call]}]

    text = json.dumps({"code": "a, b: [1]" * most})
    assert checked_messages(talk(text), 10_000_000)
    many = '{"a":[%s1]}' % ("1," * most)
    with pytest.raises(BadRecord, match="more than 100,000 values"):
        checked_messages(talk(many), 10_000_000)
    with pytest.raises(ValidationError, match="more than 100,000 values"):
        request(messages=talk(many))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(st.text(), deeper, max_size=3),
    max_leaves=8,
)
names = st.sampled_from(
    ["role", "content", "tool_calls", "tool_call_id", "name", "refusal", "type", "function", "text"]
)
odd = st.recursive(
    json_values | st.sampled_from(["user", "assistant", "tool", "developer", "text", "function"]),
    lambda deeper: st.lists(deeper, max_size=3) | st.dictionaries(names, deeper, max_size=5),
    max_leaves=12,
)


@effort(deadline=None, max_examples=300)
@given(odd)
def test_whatever_stands_for_messages_is_taken_or_refused_in_words(value: Any) -> None:
    try:
        found = checked_messages(value, 100_000)
    except InvalidInput:
        return
    assert checked_messages(found, 100_000) == found


@effort(deadline=None, max_examples=100)
@given(st.dictionaries(st.text(alphabet='abé\n"\\'), json_values, max_size=4))
def test_arguments_are_the_same_as_an_object_and_as_text(arguments: dict[str, Any]) -> None:
    def call(written: Any) -> list[dict[str, Any]]:
        function = {"name": "look", "arguments": written}
        return [{"role": "assistant", "tool_calls": [{"id": "1", "function": function}]}]

    try:
        expected = checked_messages(call(arguments), 100_000)
    except InvalidInput:
        return
    assert checked_messages(call(json.dumps(arguments)), 100_000) == expected
    said = openai_chat.body(request(messages=expected))["messages"][0]["tool_calls"][0]
    assert json.loads(said["function"]["arguments"]) == arguments
