"""What a request for a response asks of its provider."""

from typing import Any

import pytest

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.demo import DemoService
from promptstack.services.llm.openai.service import OpenAIService
from promptstack.services.responses.requests import generation_of

HELLO = [{"role": "user", "content": "Hello."}]


def options(provider: str, **asked: Any) -> dict[str, Any]:
    service = DemoService if provider == "demo" else OpenAIService
    _, how = generation_of(asked, HELLO, provider, service)
    found: dict[str, Any] = how["options"]
    return found


def test_openai_is_asked_by_its_responses_api_with_all_that_it_knows() -> None:
    asked = {"reasoning": {"effort": "low"}, "truncation": "auto", "user": "ada"}
    assert options("openai") == {"api": "responses"}
    assert options("openai", **asked) == {"api": "responses", **asked}


def test_another_server_is_asked_by_what_every_server_has_unless_a_field_needs_more() -> None:
    assert options("mine", user="ada") == {"user": "ada"}
    assert options("mine", reasoning={}, text={"verbosity": "low"})["api"] == "responses"


def test_another_provider_hears_nothing_of_hints() -> None:
    hints = {"user": "ada", "prompt_cache_key": "x", "include": ["reasoning.encrypted_content"]}
    assert options("demo", **hints, truncation="disabled", parallel_tool_calls=True) == {}
    with pytest.raises(InvalidInput, match="top_p"):
        options("demo", top_p=0.5)


def test_what_this_server_obeys_itself_goes_to_no_provider() -> None:
    ours = {"background": True, "store": False, "service_tier": "flex", "metadata": {"a": "b"}}
    assert options("openai", **ours, stream=True, stream_options={}) == {"api": "responses"}
