"""What models want called."""

from typing import Any

from services.llm.reading import Notes, Part, tool_call


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
