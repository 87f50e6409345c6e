"""What a provider call took in tokens and money, as far as its answer or error tells."""

from decimal import Decimal
from typing import Any

from promptstack.config.errors import PromptStackError
from promptstack.repositories.models import Billing
from promptstack.services.accounting.prices import Prices
from promptstack.services.limiter.limiter import Permit
from promptstack.services.llm.answers import EmbeddingResponse, LLMResponse, Usage
from promptstack.services.llm.reading import MOST_TOKENS
from promptstack.services.text import make_storable

UNKNOWN = Usage(None, None, None, None)
BILLING = {True: Billing.BILLED, False: Billing.NOT_BILLED, None: Billing.UNKNOWN}


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


def failed(
    error: PromptStackError,
    provider: str,
    model: str,
    prices: Prices,
    heard: Usage | None = None,
) -> dict[str, Any]:
    """What is known about the cost of a failed call, as the columns of its attempt.

    `heard` is an estimate, where a part of its answer has come: that part is billed.
    """
    told = getattr(error, "usage", None)
    if told is None and heard is not None:
        return {
            **cut_off(heard, provider, model, prices),
            "latency_seconds": None,
            "limiter_wait_seconds": None,
            "provider_request_id": getattr(error, "request_id", None),
        }
    billing = billing_of(error)
    took = _used(told or UNKNOWN, provider, model, prices)
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


def cut_off(heard: Usage, provider: str, model: str, prices: Prices) -> dict[str, Any]:
    """What a call took that was cut off in its answer, as columns of its attempt."""
    return {
        **_used(heard, provider, model, prices),
        "billing": Billing.BILLED,
        "note": "the answer was cut off; its tokens are an estimate",
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
    """Whether a call with this error is billed. It is if the error says what the call took."""
    is_told = getattr(error, "usage", None) is not None
    return BILLING[True if is_told else error.billed]


def credible(tokens: int | None) -> int | None:
    """A count of tokens, or None if the provider's count makes no sense; the answer is kept."""
    return tokens if tokens is not None and 0 <= tokens <= MOST_TOKENS else None
