"""Stored answers of any provider, as the models of OpenAI's own SDK read them strictly."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.completion_usage import CompletionUsage

from promptstack.services.openai.chat import ChatStream, chat_completion

NAMES: dict[str, Any] = {
    "answer_id": "chatcmpl-1",
    "created": 1_700_000_000,
    "model": "gpt-5-nano",
}
ANSWER: dict[str, Any] = {
    "text": "Hello.",
    "model": "gpt-5-nano-2025-08-07",
    "finish_reason": "stop",
    "input_tokens": 7,
    "output_tokens": 3,
    "tokens_used": 10,
    "cached_tokens": 2,
    "tool_calls": [],
    "provider_request_id": "req_1",
}
CALL = {"id": "call_0", "name": "weather", "arguments": {"city": "Zürich"}}
tokens = st.none() | st.integers(0, 2**31 - 1)
answers = st.fixed_dictionaries(
    {
        "text": st.text(),
        "model": st.text(min_size=1),
        "finish_reason": st.sampled_from(["stop", "length", "tool_use", "SAFETY", "unknown", "x"]),
        "input_tokens": tokens,
        "output_tokens": tokens,
        "cached_tokens": tokens,
        "tool_calls": st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.text(min_size=1),
                    "name": st.text(min_size=1),
                    "arguments": st.text() | st.dictionaries(st.text(), st.integers()),
                }
            ),
            max_size=3,
        ),
    }
)


def _read(made: dict[str, Any]) -> ChatCompletion:
    return ChatCompletion.model_validate_json(json.dumps(made), strict=True, extra="forbid")


def _chunks(result: dict[str, Any], pieces: list[str], **options: Any) -> list[ChatCompletionChunk]:
    stream = ChatStream(**NAMES, **options)
    made = [stream.first(), *map(stream.text, pieces), *stream.last(result)]
    return [
        ChatCompletionChunk.model_validate_json(json.dumps(one), strict=True, extra="forbid")
        for one in made
    ]


def test_an_answer_says_all_that_openai_says() -> None:
    read = _read(chat_completion(ANSWER, **NAMES))
    [choice] = read.choices
    assert (read.id, read.object, read.created) == ("chatcmpl-1", "chat.completion", 1_700_000_000)
    assert read.model == "gpt-5-nano-2025-08-07"
    assert (choice.message.content, choice.message.role) == ("Hello.", "assistant")
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert read.usage is not None
    assert (read.usage.prompt_tokens, read.usage.completion_tokens) == (7, 3)
    assert read.usage.total_tokens == 10
    assert read.usage.prompt_tokens_details is not None
    assert read.usage.prompt_tokens_details.cached_tokens == 2


@effort(max_examples=40, deadline=None)
@given(answers, st.lists(st.text(min_size=1)))
def test_whatever_was_stored_the_sdk_reads_it_strictly(
    result: dict[str, Any], pieces: list[str]
) -> None:
    whole = _read(chat_completion(result, **NAMES))
    chunks = _chunks(result, pieces, with_usage=True)
    [last] = [one for chunk in chunks for choice in chunk.choices if (one := choice.finish_reason)]
    assert last == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("said", "calls", "expected"),
    [
        ("stop", [], "stop"),
        ("stop", [CALL], "tool_calls"),
        ("tool_calls", [CALL], "tool_calls"),
        ("tool_calls", [], "stop"),
        ("length", [CALL], "length"),
        ("max_tokens", [], "length"),
        ("model_context_window_exceeded", [], "length"),
        ("pause_turn", [], "stop"),
        ("SAFETY", [], "content_filter"),
        ("refusal", [], "content_filter"),
        ("content_filter", [], "content_filter"),
        ("unknown", [], "stop"),
        (None, [], "stop"),
    ],
)
def test_the_reason_of_the_end_is_one_of_openais_words(
    said: str | None, calls: list[dict[str, Any]], expected: str
) -> None:
    result = {**ANSWER, "finish_reason": said, "tool_calls": calls}
    assert _read(chat_completion(result, **NAMES)).choices[0].finish_reason == expected


def test_calls_have_their_arguments_as_text() -> None:
    cut_off = {"id": "call_1", "name": "weather", "arguments": '{"city": "Zü'}
    message = (
        _read(chat_completion({**ANSWER, "text": "", "tool_calls": [CALL, cut_off]}, **NAMES))
        .choices[0]
        .message
    )
    assert message.content is None
    assert message.tool_calls is not None
    arguments = [call.function.arguments for call in message.tool_calls if call.type == "function"]
    assert arguments == ['{"city":"Zürich"}', '{"city": "Zü']


def test_an_answer_without_text_and_calls_is_empty_and_not_missing() -> None:
    assert _read(chat_completion({**ANSWER, "text": ""}, **NAMES)).choices[0].message.content == ""


def test_unknown_tokens_are_no_zeros() -> None:
    assert _read(chat_completion({**ANSWER, "output_tokens": None}, **NAMES)).usage is None


def test_a_stream_adds_up_to_the_answer() -> None:
    """The SDK's own sum of the chunks is the whole answer."""
    result = {**ANSWER, "text": "Hello.", "tool_calls": [CALL, {**CALL, "id": "call_1"}]}
    state = ChatCompletionStreamState()
    for chunk in _chunks(result, ["Hel", "lo."], with_usage=True):
        state.handle_chunk(chunk)
    summed = state.get_final_completion()
    whole = _read(chat_completion(result, **NAMES))
    assert summed.choices[0].message.content == whole.choices[0].message.content
    assert summed.choices[0].finish_reason == whole.choices[0].finish_reason
    assert [call.function.model_dump() for call in summed.choices[0].message.tool_calls or ()] == [
        {**call.function.model_dump(), "parsed_arguments": None}
        for call in whole.choices[0].message.tool_calls or ()
        if call.type == "function"
    ]
    assert isinstance(summed.usage, CompletionUsage)
    assert summed.usage == whole.usage


def test_a_stream_says_its_tokens_only_where_that_is_asked_for() -> None:
    chunks = _chunks(ANSWER, ["Hello."])
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)
    assert all(chunk.choices for chunk in chunks)
