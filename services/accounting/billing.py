"""What a provider call came to in tokens and money, as far as its end tells."""

from decimal import Decimal
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.repositories.models import Billing
from promptstack.services.accounting.prices import Prices
from promptstack.services.limiter.limiter import Permit
from promptstack.services.llm.base import EmbeddingResponse, LLMResponse
from promptstack.services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ContentRefused,
    Denied,
    InvalidProviderRequest,
    NeverSent,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.reading import MOST_TOKENS
from promptstack.services.llm.usage import Usage
from promptstack.services.text import make_storable

UNKNOWN = Usage(None, None, None, None)
NOT_BILLED = (
    RateLimited,
    QuotaExhausted,
    Overloaded,
    AuthenticationFailed,
    Denied,
    InvalidProviderRequest,
    NeverSent,
)
"""The errors with which a provider refuses a call, or never saw it: it bills none."""


def taken(
    answer: LLMResponse | EmbeddingResponse,
    provider: str,
    model: str,
    permit: Permit | None,
    prices: Prices,
) -> dict[str, Any]:
    """What an answered call took, as the columns of its attempt."""
    return {
        **_used(answer, provider, model, prices),
        "billing": Billing.BILLED,
        "latency_seconds": answer.latency_seconds,
        "limiter_wait_seconds": permit.waited_seconds if permit else None,
        "provider_request_id": make_storable(answer.provider_request_id or "") or None,
        "note": answer.note or None,
    }


def failed(error: PromptStackError, provider: str, model: str, prices: Prices) -> dict[str, Any]:
    """What is known of a failed call's money, as the columns of its attempt."""
    billing = billing_of(error)
    took = _used(getattr(error, "usage", None) or UNKNOWN, provider, model, prices)
    if billing is Billing.NOT_BILLED:
        took["cost_usd"] = Decimal(0)
    return {
        **took,
        "billing": billing,
        "latency_seconds": None,
        "limiter_wait_seconds": None,
        "provider_request_id": getattr(error, "request_id", None),
        "note": getattr(error, "note", None) or None,
    }


def _used(
    used: LLMResponse | EmbeddingResponse | Usage, provider: str, model: str, prices: Prices
) -> dict[str, Any]:
    tokens = {
        "input_tokens": credible(used.input_tokens),
        "output_tokens": credible(getattr(used, "output_tokens", 0)),
    }
    cached = credible(getattr(used, "cached_tokens", 0))
    written = credible(getattr(used, "cache_write_tokens", 0))
    cost = prices.cost(provider, model, cached_tokens=cached, cache_write_tokens=written, **tokens)
    return {**tokens, "cached_tokens": cached, "cost_usd": cost}


def billing_of(error: PromptStackError) -> Billing:
    """What an error tells of the money."""
    if isinstance(error, BadResponse) or getattr(error, "usage", None) is not None:
        return Billing.BILLED
    if isinstance(error, ContentRefused) and 400 <= (error.status or 0) < 500:
        return Billing.NOT_BILLED  # the input was filtered: no model has seen it
    if isinstance(error, ServerBroke):
        return Billing.UNKNOWN  # the work may have been done before something broke
    return Billing.NOT_BILLED if isinstance(error, NOT_BILLED) else Billing.UNKNOWN


def credible(tokens: int | None) -> int | None:
    """A count of tokens, or None where a provider tells nonsense: the answer is kept anyway."""
    return tokens if tokens is not None and 0 <= tokens <= MOST_TOKENS else None
