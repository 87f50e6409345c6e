"""Anthropic's messages as requests and as answers: pure functions."""

from typing import Any

import pytest
from anthropic.types import Message

from promptstack.services.anthropic.messages import MessageStream, message
from promptstack.services.anthropic.requests import generation_of
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.requests import GenerationRequest

HELLO = [{"role": "user", "content": "Hello."}]
CALL = {"id": "call_1", "name": "find", "arguments": {"q": "x"}}
ANSWER: dict[str, Any] = {
    "text": "Hi.",
    "model": "m-1",
    "finish_reason": "stop",
    "input_tokens": 10,
    "output_tokens": 3,
    "cached_tokens": 4,
    "cache_write_tokens": 1,
}


def test_a_body_is_a_generation() -> None:
    how = generation_of(
        {
            "model": "m",
            "max_tokens": 9,
            "stream": True,
            "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Find x."}]},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "text", "text": "I look."},
                        {"type": "tool_use", "id": "t1", "name": "find", "input": {"q": "x"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": "found"},
                        {
                            "type": "tool_result",
                            "tool_use_id": "t2",
                            "is_error": True,
                            "content": [{"type": "text", "text": "no"}],
                        },
                        {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
                    ],
                },
            ],
            "temperature": 0.5,
            "stop_sequences": ["END"],
            "tools": [{"name": "find", "input_schema": {"type": "object"}, "description": "F."}],
            "tool_choice": {"type": "any"},
            "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            "metadata": {"user_id": "7"},
            "top_k": 5,
        }
    )
    request = GenerationRequest(provider="p", model="m", **how)
    assert request.system == "Be\nkind."
    assert [turn.role for turn in request.messages] == ["user", "assistant", "tool", "tool", "user"]
    assert request.messages[1].tool_calls[0].arguments == {"q": "x"}
    assert [turn.content for turn in request.messages[2:]] == ["found", "Error: no", "And?"]
    assert (request.max_tokens, request.temperature, request.stop) == (9, 0.5, ("END",))
    assert (request.tools[0].name, request.tool_choice) == ("find", "required")
    assert request.json_schema == {"type": "object"}
    assert request.options == {"top_k": 5}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"messages": []}, "/messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "/messages/0/role"),
        ({"messages": [{"role": "user", "content": 7}]}, "/messages/0/content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "/messages/0/content/0/type",
        ),
        ({"system": [{"type": "image"}]}, "/system/0"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "/tools/0/type"),
        ({"tool_choice": {"type": "some"}}, "/tool_choice/type"),
        ({"output_config": {"format": {"type": "text"}}}, "/output_config/format"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_can_not_be_handed_on_is_refused_by_its_name(
    body: dict[str, Any], pointer: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        generation_of({"messages": HELLO, **body})
    assert caught.value.pointer == pointer


@pytest.mark.parametrize(
    ("reason", "calls", "stop_reason"),
    [
        ("stop", [], "end_turn"),
        ("length", [], "max_tokens"),
        ("content_filter", [], "refusal"),
        ("tool_calls", [CALL], "tool_use"),
        ("something new", [], "end_turn"),
    ],
)
def test_an_answer_is_a_message(reason: str, calls: list[dict[str, Any]], stop_reason: str) -> None:
    result = {**ANSWER, "finish_reason": reason, "tool_calls": calls}
    made = Message.model_validate(message(result, message_id="msg_1", model="m"), strict=True)
    assert (made.id, made.model, made.stop_reason) == ("msg_1", "m-1", stop_reason)
    assert [block.type for block in made.content] == ["text", "tool_use"][: 1 + len(calls)]
    usage = made.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (5, 4, 3)


def test_a_stream_begins_and_ends_each_block() -> None:
    stream = MessageStream(message_id="msg_1", model="m")
    result = {**ANSWER, "tool_calls": [CALL], "finish_reason": "tool_calls"}
    events = [stream.first(), *stream.text("Hi"), *stream.text("."), *stream.last(result)]
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[6]["delta"]["partial_json"] == '{"q":"x"}'
    assert events[8]["usage"]["output_tokens"] == 3
