"""What models want called."""

from services.llm.openai_chat import tool_call


def test_arguments_that_were_cut_stay_text_and_are_not_asked_for_again() -> None:
    assert tool_call("a", "look", '{"color": "bl')["arguments"] == '{"color": "bl'
    assert tool_call("a", "look", "")["arguments"] == {}
    assert tool_call("a", "look", '{"color": "\\u0000"}')["arguments"] == {"color": "\ufffd"}


def test_numbers_that_json_does_not_know_become_null_and_cost_no_answer() -> None:
    made = tool_call("a", "look", '{"x": NaN, "y": [1e999, -Infinity, 1.5]}')
    assert made["arguments"] == {"x": None, "y": [None, None, 1.5]}
