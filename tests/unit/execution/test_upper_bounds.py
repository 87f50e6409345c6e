"""The most that a call can cost: known with the options that can't raise it, else not."""

from typing import Any

import pytest

from promptstack.services.accounting.upper_bounds import most_of_generation
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.request_bodies import asked_of
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.runs.intake.estimates import check_bounded


def request_for(**how: Any) -> GenerationRequest:
    return GenerationRequest(prompt="Hello.", provider="openai", model="gpt-5-mini", **how)


@pytest.mark.parametrize(
    "body",
    [{}, {"top_p": 0.5, "parallel_tool_calls": False}, {"reasoning": {"effort": "low"}}],
    ids=["plain", "options", "reasoning"],
)
def test_it_is_known_of_a_response_with_a_longest_answer(body: dict[str, Any]) -> None:
    asked = asked_of("/responses", {"input": "Hello.", "max_output_tokens": 20, **body})
    most = most_of_generation(request_for(**asked.how))
    plain = most_of_generation(request_for(max_tokens=20))
    assert most is not None
    assert plain is not None
    assert most.output == 20
    assert most.input > plain.input
    check_bounded(asked.how)


@pytest.mark.parametrize("name", ["service_tier", "n", "web_search_options"])
def test_it_is_unknown_with_options_that_may_raise_it(name: str) -> None:
    how = {"max_tokens": 20, "options": {"top_p": 0.5, name: 2}}
    assert most_of_generation(request_for(**how)) is None
    with pytest.raises(InvalidInput, match="provider options"):
        check_bounded(how)
