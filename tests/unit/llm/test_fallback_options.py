"""Fallbacks of an alias: who is asked in place of another obeys what the request asks for."""

from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.requests import Fallback

OPENAI, ANTHROPIC = (
    Fallback(provider="openai", model="gpt-5-mini"),
    Fallback(provider="anthropic", model="claude-sonnet-4-5"),
)
JSON_MODE = {"response_format": {"type": "json_object"}}


def test_a_fallback_gets_the_options_or_is_not_asked() -> None:
    factory = LLMServiceFactory()
    assert factory.fallbacks_for([OPENAI, ANTHROPIC], {}) == (OPENAI, ANTHROPIC)
    [only] = factory.fallbacks_for([ANTHROPIC, OPENAI], JSON_MODE)
    assert (only.provider, only.options) == ("openai", JSON_MODE)


def test_what_changes_no_answer_keeps_no_fallback_out() -> None:
    factory = LLMServiceFactory()
    theirs = factory.fallbacks_for([ANTHROPIC, OPENAI], {"user": "u"})
    assert [one.options for one in theirs] == [{}, {"user": "u"}]
