"""Answers in forms of their own: what is read of them, and what is noted."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.anthropic import read as read_anthropic
from promptstack.services.llm.errors import (
    BadResponse,
    ContentRefused,
    Overloaded,
    QuotaExhausted,
    RateLimited,
)
from promptstack.services.llm.gemini import GeminiService
from promptstack.services.llm.gemini import read as read_gemini
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.openai import chat as openai_chat
from promptstack.services.llm.openai import responses as openai_responses
from promptstack.services.llm.reading import Part, Said, parse
from promptstack.services.llm.remote import RemoteService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.vectors import vectors

READERS: dict[str, tuple[type[RemoteService[Any]], Callable[[Part], Said]]] = {
    "chat": (OpenAIService, openai_chat.read),
    "responses": (OpenAIService, openai_responses.read),
    "anthropic": (AnthropicService, read_anthropic),
    "gemini": (GeminiService, read_gemini),
}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}
SCHEMA = {"type": "object"}


def answer(wire: str, body: Any, **asked: Any) -> LLMResponse:
    service, read = READERS[wire]
    request = GenerationRequest(provider="p", model="m", prompt="Why?", **asked)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return service()._response(httpx2.Response(200, content=content), request, read)


def chat(message: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": "stop"}], "usage": USAGE, **more}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("sky", "sky"),
        (None, ""),
        ([], ""),
        (["s", "ky"], "sky"),
        ([{"type": "text", "text": "s"}, {"text": "ky"}], "sky"),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "sky"}], "sky"),
        ([{"type": 7, "text": "sky"}, 5, None], "sky"),
        ({"type": "text", "text": "sky"}, "sky"),
    ],
)
def test_a_text_is_read_in_whichever_parts_it_comes(content: Any, text: str) -> None:
    assert answer("chat", chat({"content": content})).text == text


@pytest.mark.parametrize(
    "content", [5, True, {"sky": 1}, [5], [{"type": "text"}], [{"type": "text", "text": 5}]]
)
def test_what_is_no_text_is_no_answer_and_has_its_usage(content: Any) -> None:
    with pytest.raises(BadResponse) as caught:
        answer("chat", chat({"content": content}))
    assert caught.value.usage is not None
    assert caught.value.usage.input_tokens == 5


def test_an_object_is_the_json_that_was_asked_for() -> None:
    response = answer("chat", chat({"content": {"sky": "blau"}}), json_schema=SCHEMA)
    assert json.loads(response.text) == {"sky": "blau"}
    assert response.note


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ({"function": {"name": "f", "arguments": {"a": 1}}}, ("call_0", {"a": 1})),
        ({"id": "x", "function": {"name": "f", "arguments": None}}, ("x", {})),
        ({"id": 7, "function": {"name": "f", "arguments": '{"a": 1}'}}, ("call_0", {"a": 1})),
        ({"id": "x", "function": {"name": "f", "arguments": '{"a": 1'}}, ("x", '{"a": 1')),
        ({"id": "x", "function": {"name": "f", "arguments": [1]}}, ("x", [1])),
        (
            {"id": "x", "function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}},
            ("x", '{"a": 1, "a": 2}'),
        ),
        (
            {"id": "x", "function": {"name": "f", "arguments": "[" * 60 + "]" * 60}},
            ("x", "[" * 60 + "]" * 60),
        ),
    ],
)
def test_a_call_is_read_without_an_id_and_with_any_arguments(call: Any, expected: Any) -> None:
    [made] = answer("chat", chat({"content": None, "tool_calls": [call]})).tool_calls
    assert (made["id"], made["name"], made["arguments"]) == (expected[0], "f", expected[1])


def test_one_call_where_a_list_belongs_and_the_form_before_lists() -> None:
    function = {"name": "f", "arguments": "{}"}
    for message in ({"tool_calls": {"id": "x", "function": function}}, {"function_call": function}):
        assert answer("chat", chat({"content": None, **message})).tool_calls[0]["name"] == "f"


def test_a_call_without_a_name_costs_no_text_and_is_no_answer_alone() -> None:
    calls = [{"id": "x", "function": {"arguments": "{}"}}]
    response = answer("chat", chat({"content": "sky", "tool_calls": calls}))
    assert (response.text, response.tool_calls) == ("sky", ())
    assert "name is missing" in response.note


def test_what_is_lost_of_a_call_or_a_text_is_noted() -> None:
    function = {"name": "f", "arguments": '{"a": NaN}'}
    response = answer(
        "chat", chat({"content": "a\x00b", "tool_calls": [{"id": "x", "function": function}]})
    )
    assert response.text == "a\ufffdb"
    assert response.tool_calls[0]["arguments"] == {"a": None}
    assert "a tool's call holds what can't be stored" in response.note
    assert "some of its characters can't be stored" in response.note


@pytest.mark.parametrize(
    ("usage", "note", "tokens"),
    [
        ({"prompt_tokens": "5", "completion_tokens": 2.0}, "", (5, 2)),
        (
            {"prompt_tokens": 0, "completion_tokens": 0},
            "no input tokens were counted",
            (None, None),
        ),
        ({"prompt_tokens": 5.5, "completion_tokens": 2}, "usage.prompt_tokens", (None, 2)),
        ({"prompt_tokens": True, "completion_tokens": 2}, "usage.prompt_tokens", (None, 2)),
        (
            {**USAGE, "prompt_tokens_details": {"cached_tokens": 6}},
            "more tokens were cached than read",
            (5, 2),
        ),
    ],
)
def test_tokens_are_what_can_be_read_and_can_be_true(
    usage: Any, note: str, tokens: tuple[int | None, int | None]
) -> None:
    response = answer("chat", chat({"content": "sky"}, usage=usage))
    assert (response.input_tokens, response.output_tokens) == tokens
    assert note in response.note if note else not response.note
    assert response.cached_tokens == (None if "cached" in note else 0)


@pytest.mark.parametrize("wire", READERS)
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 429, "message": "slow"}, RateLimited),
        ({"code": "502", "message": "gateway"}, Overloaded),
        ({"code": "insufficient_quota"}, QuotaExhausted),
        ({"type": "overloaded_error"}, Overloaded),
        ({"code": "content_filter"}, ContentRefused),
        ({"code": 17}, BadResponse),
        ("all is lost", BadResponse),
    ],
    ids=str,
)
def test_an_error_that_comes_as_an_answer_is_that_error(
    wire: str, error: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        answer(wire, {"error": error})


def test_an_error_beside_a_text_does_not_cost_the_text() -> None:
    assert answer("chat", chat({"content": "sky"}, error={"code": 502})).text == "sky"
    output = [{"type": "message", "content": [{"type": "output_text", "text": "sky"}]}]
    body = {"output": output, "error": {"code": "server_error"}, "status": "failed"}
    assert answer("responses", body).finish_reason == "failed"


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"content": "a"}',
        '{"content": "a"}'.encode("utf-16"),
        b'{"content": "a", "x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
        b'{"content": "a", "x": ' + b"9" * 5_000 + b"}",
        b'{"content": "a", "x": "\\ud800"}',
        b'{"content": "a", "x": "\xff\n"}',
        b'{"content": "a", "x": [NaN, -Infinity, 1e999]}',
    ],
    ids=["mark", "utf-16", "deep", "digits", "half", "bytes", "numbers"],
)
def test_json_is_parsed_whatever_stands_beside(body: bytes) -> None:
    assert parse(body).text("content") == "a"


def rows(*indexes: Any) -> list[Part]:
    made = [{"v": [float(n)]} | ({} if i is None else {"i": i}) for n, i in enumerate(indexes)]
    return parse(json.dumps({"rows": made}).encode()).parts("rows")


@pytest.mark.parametrize(
    ("indexes", "order"),
    [
        ((0, 1, 2), (0, 1, 2)),
        ((2, 0, 1), (1, 2, 0)),
        (("1", 0.0, 2), (1, 0, 2)),
        ((None, None, None), (0, 1, 2)),
        ((7,), (0,)),
        (("first",), (0,)),
    ],
)
def test_vectors_are_in_the_order_of_the_texts(indexes: Any, order: tuple[int, ...]) -> None:
    found, _ = vectors(rows(*indexes), "v", len(indexes), index="i")
    np.testing.assert_array_equal(found[:, 0], np.array(order, np.float32))


@pytest.mark.parametrize("indexes", [(0, 0), (1, 2), (0, None), (-1, 0), ("a", "b"), (0, 0.5)])
def test_vectors_that_may_be_of_either_text_are_refused(indexes: Any) -> None:
    with pytest.raises(ValueError, match="exactly one vector"):
        vectors(rows(*indexes), "v", 2, index="i")


@pytest.mark.parametrize(
    "vector", [[True, 1.0], ["1"], [[1.0], [2.0]], {}, 5, None, "*", [10**400]]
)
def test_what_is_no_vector_is_refused(vector: Any) -> None:
    part = parse(json.dumps({"rows": {"v": vector}}).encode()).parts("rows")
    with pytest.raises((ValueError, TypeError, ArithmeticError)):
        vectors(part, "v", 1)


@pytest.mark.parametrize(
    ("vector", "told"),
    [(None, "is missing, and no list of numbers"), ([1.0, None], "holds nothing where a number")],
)
def test_what_is_wrong_with_a_vector_is_told(vector: Any, told: str) -> None:
    part = parse(json.dumps({"rows": {"v": vector}}).encode()).parts("rows")
    with pytest.raises((ValueError, TypeError), match=told):
        vectors(part, "v", 1)


def test_a_vector_in_a_list_of_one_and_whole_numbers_are_taken() -> None:
    for vector in ([1, 2], [[1.0, 2]]):
        part = parse(json.dumps({"rows": {"v": vector}}).encode()).parts("rows")
        assert vectors(part, "v", 1)[0].tolist() == [[1.0, 2.0]]


def test_said_of_nothing_is_nothing() -> None:
    for _, read in READERS.values():
        said: Said = read(parse(b"{}"))
        assert (said.text, said.tool_calls) == (None, ())
