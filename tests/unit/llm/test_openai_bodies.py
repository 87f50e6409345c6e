"""Whatever JSON a request to OpenAI holds: it is asked for as it says, or refused in words."""

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.openai import chat as openai_chat
from promptstack.services.llm.openai import responses as openai_responses
from promptstack.services.llm.request_bodies import HONOURED_ONLY_AS
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.intake.new_run import RunDefaults
from promptstack.services.runs.intake.plans import plan_embedding, plan_generation
from promptstack.services.sources.batch_lines import BatchLines
from promptstack.services.sources.reading import BadInput, Reading
from promptstack.services.sources.records import RecordCheck

EXAMPLES = int(os.environ.get("ODD_EXAMPLES", "400"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda deeper: (
        st.lists(deeper, max_size=3)
        | st.dictionaries(
            st.text(max_size=3) | st.sampled_from(["type", "function", "name", "schema", "format"]),
            deeper,
            max_size=3,
        )
    ),
    max_leaves=6,
)
OF_CHAT: dict[str, Any] = {
    "model": "gpt-5-nano",
    "messages": [{"role": "user", "content": "Hi"}],
    "temperature": 0.5,
    "max_tokens": 5,
    "stop": ["END"],
    "seed": 3,
    "top_p": 0.5,
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "tool_choice": "auto",
    "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
}
OF_RESPONSES = {
    "model": "gpt-5-nano",
    "input": "Hi",
    "instructions": "Be brief.",
    "temperature": 0.5,
    "max_output_tokens": 5,
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
}
OF_EMBEDDINGS = {"model": "text-embedding-3-small", "input": "Hi", "encoding_format": "base64"}


DEFAULTS = RunDefaults(
    generation_provider="openai",
    embedding_provider="openai",
    max_retries=0,
    expires_seconds=60.0,
    in_flight=1,
    max_text_bytes=1_000_000,
    block_bytes=1_000_000,
)
FACTORY = LLMServiceFactory({"openai": {"api_key": "key"}})


def lines_of(kind: str) -> BatchLines:
    if kind == "embedding":
        return plan_embedding(FACTORY, DEFAULTS, {}).lines
    return plan_generation(FACTORY, DEFAULTS, {}, lambda _: None).lines


@effort(deadline=None, max_examples=EXAMPLES)
@given(
    st.sampled_from(
        [
            ("generation", "/v1/chat/completions", OF_CHAT),
            ("generation", "/v1/responses", OF_RESPONSES),
            ("embedding", "/v1/embeddings", OF_EMBEDDINGS),
        ]
    ),
    st.data(),
)
def test_any_body_is_asked_for_or_refused(form: tuple[str, str, Any], data: Any) -> None:
    kind, url, whole = form
    names = st.sampled_from([*whole, *HONOURED_ONLY_AS, "metadata", "stream_options"])
    body = {**whole, **data.draw(st.dictionaries(names, json_values, max_size=3))}
    record = {"custom_id": "c", "method": "POST", "url": url, "body": body}
    lines = lines_of(kind)
    lines.agree([("line 1", record), ("line 2", {**record, "body": whole})])
    found = RecordCheck(Reading(), lines.unfold)(1, dict(record))
    if isinstance(found, BadInput):
        assert found.reason.endswith(".")
        assert found.custom_id == "c"
        assert "The request is not valid: :" not in found.reason
    else:
        assert found.metadata == (
            {} if body.get("metadata") is None else {"metadata": body["metadata"]}
        )


@effort(deadline=None, max_examples=100)
@given(st.sets(st.sampled_from(sorted(OF_CHAT.keys() - {"messages", "tool_choice"}))))
def test_what_goes_out_to_openai_is_what_came_in(left_out: set[str]) -> None:
    body = {name: value for name, value in OF_CHAT.items() if name not in left_out}
    if "tools" not in body:
        del body["tool_choice"]
    record = {"url": "/v1/chat/completions", "body": body}
    lines = lines_of("generation")
    new = lines.agree([("line 1", record)])
    turns: Any = lines.unfold(record)[0]["messages"]
    request = GenerationRequest(
        provider="openai", model=new.model, messages=turns, **new.parameters
    )
    sent = {**openai_chat.body(request), **request.options}
    for name, value in body.items():
        if name == "max_tokens":
            assert sent["max_completion_tokens"] == value
        elif name == "response_format":
            assert sent[name]["json_schema"]["schema"] == value["json_schema"]["schema"]
        elif name == "tools":
            assert sent[name][0]["function"]["name"] == "look"
        else:
            assert list(sent[name]) == value if name == "stop" else sent[name] == value


def test_a_conversation_of_the_responses_api_goes_out_as_it_came_in() -> None:
    items = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Wait."},
        {"type": "function_call", "call_id": "c", "name": "look", "arguments": '{"a":1}'},
        {"type": "function_call", "call_id": "d", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "Blue."},
        {"type": "function_call_output", "call_id": "d", "output": ""},
    ]
    record = {"url": "https://api.openai.com/v1/responses", "body": {"model": "m", "input": items}}
    lines = lines_of("generation")
    new = lines.agree([("line 1", record)])
    turns: Any = lines.unfold(record)[0]["messages"]
    request = GenerationRequest(provider="openai", model="m", messages=turns, **new.parameters)
    assert openai_responses.body(request)["input"] == items


def test_a_body_is_refused_with_the_reason_also_where_none_agrees() -> None:
    lines = lines_of("generation")
    record = {"url": "/v1/chat/completions", "body": {**OF_CHAT, "temperature": 5}}
    lines.agree([("line 1", record)] * 3)
    with pytest.raises(InvalidInput, match="temperature"):
        lines.unfold(record)
