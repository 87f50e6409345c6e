"""What a call of a run can take at most is known before it is made."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from unittest.mock import Mock
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from promptstack.repositories.run_models import Run, RunKind
from promptstack.services.accounting.prices import Prices
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.openai.chat import body
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.shards.generation_workload import GenerationWorkload
from promptstack.services.validation.schema_bounds import SchemaBounds

TOKENS_A_TURN = 8
"""Of a turn's role and borders; providers take 3 to 7."""
HIDDEN_PROMPT = 900
"""What a provider puts before a conversation with tools: over 800 tokens at the most."""

TEXTS = st.text('aé漢🦜"\\ ', min_size=1, max_size=20)
ARGUMENTS = st.dictionaries(TEXTS, TEXTS | st.integers() | st.lists(TEXTS, max_size=2), max_size=3)
NAMES = st.text("abc_", min_size=1, max_size=64)
CALLS = st.lists(
    st.fixed_dictionaries({"id": TEXTS, "name": NAMES, "arguments": ARGUMENTS}), max_size=3
)
TURNS = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXTS}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": TEXTS, "tool_calls": CALLS}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": TEXTS, "tool_call_id": TEXTS}),
)
TOOLS = st.fixed_dictionaries(
    {"name": NAMES}, optional={"description": TEXTS, "parameters": ARGUMENTS}
)


def most(content: Content, **parameters: Any) -> tuple[int, int] | None:
    run = Run(
        kind=RunKind.GENERATION,
        provider="openai",
        model="m",
        parameters=parameters,
        user_id=uuid4(),
        max_cost_usd=Decimal(1),
    )
    workload = GenerationWorkload(run, Mock(LLMService), Prices(), SchemaBounds())
    return workload.upper_bound(Call([content]))


def conversation(messages: list[dict[str, Any]]) -> Content:
    return Content(b"", (1,), "", messages)


def texts_in(value: Any) -> Iterator[str]:
    match value:
        case str():
            yield value
        case dict():
            for name, inner in value.items():
                yield name
                yield from texts_in(inner)
        case list() | tuple():
            for inner in value:
                yield from texts_in(inner)
        case _:
            yield json.dumps(value)


@given(
    st.lists(TURNS, min_size=1, max_size=30),
    st.lists(TOOLS, max_size=5),
    st.none() | TEXTS,
    st.none() | ARGUMENTS.filter(lambda schema: schema.get("$schema") is None),
)
def test_no_call_takes_more_than_was_expected_at_most(
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]],
    system: str | None,
    schema: dict[str, Any] | None,
) -> None:
    given: dict[str, Any] = {"system": system, "tools": tools, "max_tokens": 5}
    asked = {name: value for name, value in given.items() if value}
    request = GenerationRequest(provider="openai", model="m", messages=messages, **asked)
    sent = body(request)
    worst = sum(len(text.encode()) for text in texts_in([sent["messages"], sent.get("tools", [])]))
    worst += TOKENS_A_TURN * len(sent["messages"]) + (HIDDEN_PROMPT if tools else 0)
    if schema is not None:
        worst += sum(len(text.encode()) for text in texts_in(schema))
        asked["json_schema"] = schema
    known = most(conversation(messages), **asked)
    assert known is not None
    assert known[0] >= worst
    assert known[1] == 5


def test_a_short_prompt_is_not_expected_to_take_much() -> None:
    known = most(Content(b"", (1,), "Say it."), max_tokens=5)
    assert known is not None
    assert known[0] < 100


def test_nobody_knows_without_a_longest_answer() -> None:
    assert most(Content(b"", (1,), "Say it.")) is None
