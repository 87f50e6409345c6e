"""What models want called."""

from typing import Any

import pytest

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.reading import Notes, Part
from promptstack.services.llm.requests import ToolCall
from promptstack.services.llm.tool_calls import tool_call


def arguments_of(arguments: Any) -> Any:
    [call] = tool_call(Part({"name": "look"}, Notes()), 0, "a", arguments)
    assert (call["id"], call["name"]) == ("a", "look")
    return call["arguments"]


def test_arguments_that_were_cut_stay_text_and_are_not_asked_for_again() -> None:
    assert arguments_of('{"color": "bl') == '{"color": "bl'
    assert arguments_of("") == {}
    assert arguments_of('{"color": "\\u0000"}') == {"color": "\ufffd"}


def test_numbers_that_json_does_not_know_become_null_and_cost_no_answer() -> None:
    made = arguments_of('{"x": NaN, "y": [1e999, -Infinity, 1.5]}')
    assert made == {"x": None, "y": [None, None, 1.5]}


@pytest.mark.parametrize("number", ["1e400", "1e-400", "NaN", "9" * 400, '{"b": 1, "b": 2}'])
def test_arguments_in_a_callers_string_are_kept_exactly_or_refused(number: str) -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": f'{{"a": {number}}}'}}
    with pytest.raises(InvalidInput, match="A call of a tool has"):
        ToolCall.model_validate(call)
    call["function"] = {"name": "f", "arguments": '{"a": 123456789012345678901234567890}'}
    assert ToolCall.model_validate(call).arguments == {"a": 123456789012345678901234567890}
