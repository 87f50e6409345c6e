"""JSON that ends in the middle of a text is gone through once, however many quotes it has."""

import time
from collections.abc import Iterator

import pytest

from promptstack.services.llm import reading, request_turns
from promptstack.services.llm.request_turns import few_values
from promptstack.services.sources.jsonl import STRUCTURE, TEXT_IN_JSON, has_more

CUT = '{"content": "' + r"{\"a\":[\"b\",{}]}," * 20_000
"""JSON within JSON, as where a proxy cuts an answer. Once for each quote takes minutes."""
MOST_SECONDS = 10.0


@pytest.fixture(autouse=True)
def _at_once() -> Iterator[None]:
    began = time.process_time()
    yield
    assert time.process_time() - began < MOST_SECONDS


def test_an_answer_that_was_cut_off() -> None:
    with pytest.raises(ValueError, match="Unterminated"):
        reading.parse(CUT.encode())


def test_arguments_of_a_call_that_were_cut_off() -> None:
    call = {"function": {"name": "look", "arguments": CUT}}
    assert few_values([{"role": "assistant", "tool_calls": [call]}])
    assert sum(map(CUT.count, ",:[{")) > request_turns.MAX_ARGUMENT_VALUES  # it is looked into


def test_a_line_of_a_source_that_was_cut_off() -> None:
    assert not has_more(CUT.encode(), STRUCTURE, TEXT_IN_JSON, 10_000)
    assert has_more(b"[1,2,3,4]" + CUT.encode(), STRUCTURE, TEXT_IN_JSON, 3)


def test_what_stands_before_the_cut_is_counted() -> None:
    arguments = "[" + "1," * request_turns.MAX_ARGUMENT_VALUES + CUT
    call = {"function": {"name": "look", "arguments": arguments}}
    with pytest.raises(ValueError, match="more than 100,000 values"):
        few_values([{"role": "assistant", "tool_calls": [call]}])
