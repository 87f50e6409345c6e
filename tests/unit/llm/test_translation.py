"""What a provider's refusal means."""

import httpx2
import pytest

from promptstack.config.errors import Reach
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContextTooLong,
    Denied,
    InputRefused,
    Intercepted,
    InvalidProviderRequest,
    ModelNotFound,
    NeverSent,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.translation import from_status, no_answer, token_bounds

TOOL = "Invalid schema for function 'sales_perday': 'spend limit' is not of type 'object'."
PER_DAY = '{"quotaId": "GenerateRequestsPerDayPerProject"}'


PAGE = "\n<!DOCTYPE html><html><head><title>403 Forbidden</title></head>model api key</html>"


def meaning(provider: str, status: int, text: str, *codes: object) -> ProviderError:
    return from_status(provider, status, key_setting="KEY", codes=codes, text=text, headers={})


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidProviderRequest),
        (401, Denied),
        (402, QuotaExhausted),
        (403, Denied),
        (404, Denied),
        (405, Denied),
        (408, ProviderTimeout),
        (409, Overloaded),
        (413, ContextTooLong),
        (418, InvalidProviderRequest),
        (422, InvalidProviderRequest),
        (424, ServerBroke),
        (429, RateLimited),
        (451, InputRefused),
        (500, ServerBroke),
        (501, ModelNotFound),
        (502, ServerBroke),
        (503, Overloaded),
        (504, ServerBroke),
        (520, ServerBroke),
        (521, Overloaded),
        (522, Overloaded),
        (523, Overloaded),
        (524, ServerBroke),
        (529, Overloaded),
        (599, ServerBroke),
    ],
)
@pytest.mark.parametrize("said", ["", "Oops", '{"error": 7}', "[]", "null"])
def test_a_status_whose_words_say_nothing(
    status: int, kind: type[ProviderError], said: str
) -> None:
    assert type(meaning("openai", status, said)) is kind


@pytest.mark.parametrize("status", [*range(400, 408), 410, 418, 422, 451])
@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
def test_a_page_of_a_proxy_is_no_verdict_on_anything(provider: str, status: int) -> None:
    error = meaning(provider, status, PAGE, "invalid_api_key")
    assert type(error) is Intercepted
    assert error.transient
    assert error.reach is Reach.EITHER
    assert type(meaning(provider, 413, PAGE)) is ContextTooLong
    assert type(meaning(provider, 429, PAGE)) is RateLimited
    assert {type(meaning(provider, n, PAGE)) for n in (500, 502, 504, 520)} == {ServerBroke}
    assert {type(meaning(provider, n, PAGE)) for n in (503, 521)} == {Overloaded}


@pytest.mark.parametrize(
    ("status", "code", "said", "kind"),
    [
        # A key, in the provider's own form
        (401, "invalid_api_key", "Incorrect API key provided", AuthenticationFailed),
        (401, None, "You didn't provide an API key.", AuthenticationFailed),
        (403, "permission_error", "no permission", AuthenticationFailed),
        (403, "PERMISSION_DENIED", "no", AuthenticationFailed),
        (401, None, "Access denied due to invalid subscription key", AuthenticationFailed),
        # A gateway, or nobody knows who
        (401, None, '{"detail": "Unauthorized"}', Denied),
        (403, None, '{"message": "Forbidden"}', Denied),
        (403, None, '{"message": "our api key policy"}', Denied),
        # A model
        (404, "model_not_found", "", ModelNotFound),
        (404, None, "The model `x` does not exist.", ModelNotFound),
        (403, "model_not_found", "Project has no access", ModelNotFound),
        (404, None, '{"detail": "Not Found"}', Denied),
        (501, "not_supported_error", "does not support embeddings", ModelNotFound),
        # Content
        (400, "content_filter", "", InputRefused),
        (400, None, "filtered due to Azure OpenAI's content management policy", InputRefused),
        (400, None, "Output blocked by content filtering policy", InputRefused),
        (403, 403, "Your chosen model requires moderation; your input was flagged", InputRefused),
        (403, None, "Content violates usage guidelines.", InputRefused),
        (400, None, "Content Exists Risk", InputRefused),
        (400, "data_inspection_failed", "", InputRefused),
        # Too long
        (500, 500, "input is too large to process. increase the physical batch", ContextTooLong),
        (500, None, "input (600 tokens) is too large to process.", ContextTooLong),
        (400, "exceed_context_size_error", "", ContextTooLong),
        (400, 400, "the request exceeds the available context size", ContextTooLong),
        (400, 400, "This model's maximum context length is 512 tokens.", ContextTooLong),
        (422, None, "`inputs` must have less than 512 tokens. Given: 600", ContextTooLong),
        (400, None, "the input length exceeds the context length", ContextTooLong),
        (400, None, "Too many tokens in batch. Max is 16384 got 17555", ContextTooLong),
        (429, None, "Request too large for gpt on tokens per min", ContextTooLong),
        # And what only sounds like it
        (429, None, "Too many tokens, please wait before trying again.", RateLimited),
        (429, "insufficient_quota", "", QuotaExhausted),
        (503, None, "Loading model", Overloaded),
        (503, None, "upstream connect error or disconnect/reset before headers", ServerBroke),
        (400, {"odd": "code"}, "", InvalidProviderRequest),
        (400, ["odd"], "", InvalidProviderRequest),
    ],
)
def test_the_provider_s_own_words_come_before_the_status(
    status: int, code: object, said: str, kind: type[ProviderError]
) -> None:
    assert type(meaning("openai", status, said, code, None)) is kind


@pytest.mark.parametrize(
    ("said", "bounds"),
    [
        ("must have less than 512 tokens. Given: 600", (512, 600)),
        ("maximum context length is 8192 tokens", (8_192, None)),
        ("The input is too long: '" + "x" * 3_000 + " less than 300, and got 500'", (None, None)),
    ],
)
def test_the_limit_of_a_text_is_taken_from_the_provider_and_not_from_the_text(
    said: str, bounds: tuple[int | None, int | None]
) -> None:
    assert token_bounds(said) == bounds


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthenticationFailed), (402, QuotaExhausted), (404, ModelNotFound)],
)
def test_what_all_meet_is_the_key_the_money_or_the_address(
    status: int, kind: type[ProviderError]
) -> None:
    denied = meaning("openai", status, PAGE)
    assert isinstance(denied, Denied)
    assert type(denied.about_all()) is kind
    assert denied.about_all().status == status


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


def test_our_own_key_is_hidden_in_every_form_and_when_it_is_truncated() -> None:
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


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (httpx2.ConnectError("refused"), NeverSent),
        (httpx2.ConnectTimeout("no answer to SYN"), NeverSent),
        (httpx2.PoolTimeout("all connections in use"), NeverSent),
        (httpx2.ProxyError("407"), NeverSent),
        (httpx2.ReadTimeout("late"), ProviderTimeout),
        (TimeoutError(), ProviderTimeout),
        (httpx2.ReadError("reset"), ConnectionFailed),
        (httpx2.TooManyRedirects("round and round"), ConnectionFailed),
        (ValueError("no HTTP"), BadResponse),
        (None, BadResponse),
    ],
)
def test_a_call_without_an_answer_says_whether_it_may_have_been_billed(
    cause: Exception | None, kind: type[ProviderError]
) -> None:
    of_sdk = RuntimeError("Connection error.")
    of_sdk.__cause__ = cause
    error = no_answer("openai", of_sdk)
    assert type(error) is kind
    assert (error.billed is False) == (kind is NeverSent)
    if isinstance(cause, (httpx2.HTTPError, TimeoutError)):
        assert type(no_answer("gemini", cause)) is kind  # its SDK wraps nothing
