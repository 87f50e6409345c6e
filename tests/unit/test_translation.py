"""What a provider's refusal means."""

import pytest

from services.errors import InvalidInput
from services.llm.errors import InvalidProviderRequest, ProviderError, QuotaExhausted
from services.llm.openai import OpenAIService
from services.llm.translation import from_status

TOOL = "Invalid schema for function 'sales_perday': 'spend limit' is not of type 'object'."
PER_DAY = '{"quotaId": "GenerateRequestsPerDayPerProject"}'


def meaning(provider: str, status: int, text: str) -> ProviderError:
    return from_status(provider, status, key_setting="KEY", codes=(), text=text, headers={})


@pytest.mark.parametrize("provider", ["openai", "gemini"])
def test_the_words_of_a_request_that_is_wrong_close_no_account(provider: str) -> None:
    assert type(meaning(provider, 400, TOOL)) is InvalidProviderRequest


def test_the_words_of_spent_quota_are_known() -> None:
    for provider, status, said in (
        ("anthropic", 400, "Your credit balance is too low to access the Anthropic API."),
        ("anthropic", 400, "You have reached your specified API usage limits."),
        ("gemini", 429, PER_DAY),
    ):
        assert isinstance(meaning(provider, status, said), QuotaExhausted)


def test_openai_is_not_asked_to_answer_later() -> None:
    """Its answer would come empty, be paid for, and be asked for again."""
    with pytest.raises(InvalidInput, match="background"):
        OpenAIService.check_options({"api": "responses", "background": True})
