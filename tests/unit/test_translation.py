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


OURS = "whatever-our-own-key-looks-like"
KEYS = (
    "sk-proj-abcDEF1234567890abcDEF",
    "sk-ant-api03-abc_DEF-1234567890",
    "sk-ab12****************************wxyz",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "gsk_abcdefghij0123456789",
    "ps_0123456789abcdefghijABCDEFGHIJ",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc",
)


@pytest.mark.parametrize("key", KEYS)
def test_what_looks_like_a_key_is_not_in_what_a_provider_said(key: str) -> None:
    for said in (
        f"Incorrect API key provided: {key}.",
        f'{{"x-api-key":"{key}"}}',
        "a" * 1990 + " " + key,
    ):
        error = meaning("openai", 401, said)
        assert error.detail is not None
        assert key[:12] not in error.detail
    bearer = meaning("openai", 400, "sent: Authorization: Bearer opaque_token").detail
    assert bearer == "sent: Authorization: Bearer [hidden]"


@pytest.mark.parametrize(
    "said",
    [
        TOOL,
        PER_DAY,
        "the model text-embedding-3-small",
        "gpt-4o-mini-2024-07-18",
        "key-value-store-of-mine",
        "in-depth-analysis-of-texts",
    ],
)
def test_other_words_of_a_provider_stay(said: str) -> None:
    assert meaning("openai", 400, said).detail == said


def test_our_own_key_is_hidden_whatever_it_looks_like_and_where_it_is_cut_off() -> None:
    for said in (f"{OURS} is wrong", "x" * 1990 + " " + OURS):
        error = meaning("openai", 401, said)
        error.hide(OURS)
        assert error.detail is not None
        assert OURS[:8] not in error.detail
        assert "[hidden]" in error.detail


def test_openai_is_not_asked_to_answer_later() -> None:
    """Its answer would come empty, be paid for, and be asked for again."""
    with pytest.raises(InvalidInput, match="background"):
        OpenAIService.check_options({"api": "responses", "background": True})
