"""What a provider call came to in tokens and money, as far as its end tells."""

from decimal import Decimal
from typing import Any

from config.errors import PromptStackError
from repositories.models import Billing
from services.limiter.limiter import Permit
from services.llm.base import EmbeddingResponse, LLMResponse
from services.llm.errors import (
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
from services.prices import Prices
from services.text import make_storable

MAX_TOKENS = 2**31 - 1
"""What the ledger's column holds, far above any real call."""
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
    tokens = {
        "input_tokens": credible(answer.input_tokens),
        "output_tokens": credible(getattr(answer, "output_tokens", 0)),
    }
    cached = credible(getattr(answer, "cached_tokens", 0)) or 0
    return {
        **tokens,
        "billing": Billing.BILLED,
        "cached_tokens": cached,
        "cost_usd": prices.cost(
            provider,
            model,
            cached_tokens=cached,
            cache_write_tokens=credible(getattr(answer, "cache_write_tokens", 0)) or 0,
            **tokens,
        ),
        "latency_seconds": answer.latency_seconds,
        "limiter_wait_seconds": permit.waited_seconds if permit else None,
        "provider_request_id": make_storable(answer.provider_request_id or "") or None,
    }


def not_taken(error: PromptStackError) -> dict[str, Any]:
    """What is known of a failed call's money, as the columns of its attempt."""
    billing = billing_of(error)
    return {
        "billing": billing,
        "cost_usd": Decimal(0) if billing is Billing.NOT_BILLED else None,
        "provider_request_id": getattr(error, "request_id", None),
    }


def billing_of(error: PromptStackError) -> Billing:
    """What an error tells of the money."""
    if isinstance(error, BadResponse):
        return Billing.BILLED
    if isinstance(error, ContentRefused) and 400 <= (error.status or 0) < 500:
        return Billing.NOT_BILLED  # the input was filtered: no model has seen it
    if isinstance(error, ServerBroke):
        return Billing.UNKNOWN  # the work may have been done before something broke
    return Billing.NOT_BILLED if isinstance(error, NOT_BILLED) else Billing.UNKNOWN


def credible(tokens: int | None) -> int | None:
    """A count of tokens, or None where a provider tells nonsense: the answer is kept anyway."""
    return tokens if tokens is not None and 0 <= tokens <= MAX_TOKENS else None
