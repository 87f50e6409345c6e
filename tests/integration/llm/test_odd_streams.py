"""Streams as compatible servers send them: what can be read is kept, what is missing is told."""

import asyncio
import json
from typing import Any

import pytest

from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.errors import (
    BadResponse,
    CutOff,
    InvalidProviderRequest,
    Overloaded,
    ProviderError,
    ServerBroke,
)
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import GenerationRequest
from tests.small_server import Answer, Asked, SmallServer, small_server

PROMPT = "Say it."


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(
        provider="openai", model="m", **{"prompt": PROMPT, "stream": True, **fields}
    )


def ask(server: SmallServer, *requests: GenerationRequest) -> tuple[list[LLMResponse], list[str]]:
    heard: list[str] = []

    async def run() -> list[LLMResponse]:
        service = OpenAIService(api_key="sk-test", base_url=f"{server.url}/v1")
        try:
            return [
                await service.generate_text(one, None, listener=Listener(heard.append))
                for one in requests
            ]
        finally:
            await service.aclose()

    return asyncio.run(run()), heard


def answered(said: Any, **fields: Any) -> tuple[LLMResponse, list[str]]:
    with small_server(lambda _: (200, said)) as server:
        [answer], heard = ask(server, request(**fields))
    return answer, heard


def data(*events: Any, end: str = "\n\n") -> str:
    texts = (one if isinstance(one, str) else json.dumps(one) for one in events)
    return "".join(f"data: {text}{end}" for text in texts)


def chunk(content: Any = None, reason: str | None = None, **delta: Any) -> dict[str, Any]:
    said = delta if content is None else {**delta, "content": content}
    return {"choices": [{"index": 0, "delta": said, "finish_reason": reason}], "model": "m"}


HELLO = (chunk("Hel"), chunk("lo"), chunk(reason="stop"))
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
GOOD = {
    "plain": data(*HELLO, USAGE, "[DONE]"),
    "no-done": data(*HELLO, USAGE),
    "no-reason": data(*HELLO[:2], USAGE, "[DONE]"),
    "no-last-line": data(*HELLO, USAGE) + "data: [DONE]",
    "crlf": data(*HELLO, USAGE, "[DONE]", end="\r\n\r\n"),
    "cr": data(*HELLO, USAGE, "[DONE]", end="\r\r"),
    "byte-order-mark": "\ufeff" + data(*HELLO, USAGE, "[DONE]"),
    "comments": ": hello\n\n" + data(*HELLO[:1]) + ": ping\n\n" + data(*HELLO[1:], USAGE, "[DONE]"),
    "names-and-ids": "event: message\nid: 7\nretry: 3\n" + data(*HELLO, USAGE, "[DONE]"),
    "no-space": data(*HELLO, USAGE, "[DONE]").replace("data: ", "data:"),
    "two-lines": data(chunk("Hel")).replace(', "model"', ',\ndata: "model"')
    + data(*HELLO[1:], USAGE, "[DONE]"),
    "parts": data(chunk([{"type": "text", "text": "Hel"}]), *HELLO[1:], USAGE, "[DONE]"),
    "garbage": data(HELLO[0], "{oops", "[1]", "null", *HELLO[1:], USAGE, "[DONE]"),
    "nulls": data(
        {"choices": None}, {"choices": [{"delta": None}]}, *HELLO, USAGE, {"usage": None}
    ),
    "reasoning": data(chunk(reasoning_content="Let me think."), *HELLO, USAGE, "[DONE]"),
    "other-choice": data(
        {"choices": [{"index": 1, "delta": {"content": "No."}}]}, *HELLO, USAGE, "[DONE]"
    ),
}


@pytest.mark.parametrize("said", GOOD.values(), ids=GOOD)
def test_a_stream_in_an_unusual_form_is_read(said: str) -> None:
    answer, heard = answered(said)
    assert answer.text == "".join(heard) == "Hello"
    assert (answer.input_tokens, answer.output_tokens) == (3, 2)


def test_a_server_without_streams_says_all_at_once() -> None:
    message = {"role": "assistant", "content": "Hello"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer, heard = answered({"choices": [choice], "usage": USAGE["usage"]})
    assert (answer.text, heard) == ("Hello", ["Hello"])


def test_usage_that_no_server_tells_is_estimated_and_marked_so() -> None:
    answer, _ = answered(data(*HELLO, "[DONE]"))
    assert (answer.input_tokens, answer.output_tokens) == (2, 2)
    assert "its tokens are an estimate" in answer.note


def test_stream_options_are_left_out_where_a_server_refuses_them() -> None:
    def answer(asked: Asked) -> Answer:
        if "stream_options" in asked.body:
            return 400, {"error": {"message": "Unrecognized request argument: stream_options"}}
        return 200, data(*HELLO, "[DONE]")

    with small_server(answer) as server:
        answers, _ = ask(server, request(), request())
        taken = ["stream_options" in body for body in server.bodies("/chat/completions")]
    assert [one.text for one in answers] == ["Hello", "Hello"]
    assert taken[:2] == [True, False]


def test_calls_of_tools_are_put_together() -> None:
    calls = [
        {"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"at": '}},
        {"index": 1, "id": "b", "function": {"name": "go", "arguments": {"to": 1}}},
        {"index": 0, "function": {"arguments": '"x"}'}},
    ]
    events = [chunk(tool_calls=[call]) for call in calls]
    answer, heard = answered(data(*events, chunk(reason="tool_calls"), USAGE, "[DONE]"))
    assert answer.tool_calls == (
        {"id": "a", "name": "look", "arguments": {"at": "x"}},
        {"id": "b", "name": "go", "arguments": {"to": 1}},
    )
    assert (answer.text, heard, answer.finish_reason) == ("", [], "tool_calls")


def test_calls_that_a_server_does_not_number_are_put_together() -> None:
    calls = [
        {"id": "a", "function": {"name": "look", "arguments": '{"at":'}},
        {"function": {"arguments": "1}"}},
        {"id": "b", "function": {"name": "go", "arguments": "{}"}},
    ]
    events = [chunk(tool_calls=[call]) for call in calls]
    answer, _ = answered(data(*events, chunk(reason="tool_calls"), "[DONE]"))
    assert [(call["id"], call["arguments"]) for call in answer.tool_calls] == [
        ("a", {"at": 1}),
        ("b", {}),
    ]


def test_a_character_may_come_in_two_halves() -> None:
    answer, heard = answered(data(chunk("a\ud83d"), chunk("\ude00"), chunk(reason="stop")))
    assert answer.text == "".join(heard) == "a\U0001f600"


BROKEN: dict[str, tuple[str, type[ProviderError]]] = {
    "empty": (": nothing\n\n", CutOff),
    "half": (data(*HELLO[:2]), CutOff),
    "only-usage": (data(USAGE), CutOff),
    "no-text": (data("[DONE]"), BadResponse),
    "error-object": (
        data(HELLO[0], {"error": {"message": "broke", "type": "server_error", "code": None}}),
        ServerBroke,
    ),
    "error-text": (data(HELLO[0], {"error": "broke"}), ServerBroke),
    "error-as-vllm": (
        data(HELLO[0], {"object": "error", "message": "no", "code": 400}),
        InvalidProviderRequest,
    ),
    "overloaded": (data(HELLO[0], {"error": {"code": 503, "message": "busy"}}), Overloaded),
}


@pytest.mark.parametrize(("said", "expected"), BROKEN.values(), ids=BROKEN)
def test_a_stream_that_is_no_answer_is_an_error(said: str, expected: type[ProviderError]) -> None:
    with pytest.raises(expected) as caught:
        answered(said)
    assert type(caught.value) is expected


FAILED = {"status": "failed", "error": {"code": "server_error", "message": "broke"}}
RESPONSES: dict[str, tuple[str, type[ProviderError]]] = {
    "failed": (data({"type": "response.failed", "response": FAILED}), ServerBroke),
    "failed-without-a-reason": (data({"type": "response.failed", "response": {}}), ServerBroke),
    "error": (data({"type": "error", "code": "server_error", "message": "broke"}), ServerBroke),
    "error-object": (data({"type": "error", "error": {"code": "server_error"}}), ServerBroke),
    "half": (data({"type": "response.output_text.delta", "delta": "Hel"}), CutOff),
}


@pytest.mark.parametrize(("said", "expected"), RESPONSES.values(), ids=RESPONSES)
def test_a_response_that_fails_in_its_stream_is_an_error(
    said: str, expected: type[ProviderError]
) -> None:
    with pytest.raises(expected):
        answered(said, options={"api": "responses"})
