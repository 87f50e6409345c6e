"""What is put into a provider's cache has a price of its own."""

import asyncio
import json
from decimal import Decimal
from unittest.mock import AsyncMock

import httpx2
import pytest

from promptstack.services.accounting.prices import Prices
from promptstack.services.llm.anthropic import AnthropicService
from promptstack.services.llm.requests import GenerationRequest


def test_what_anthropic_puts_into_its_cache_costs_a_quarter_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = {"input_tokens": 0, "cache_creation_input_tokens": 100_000, "output_tokens": 0}
    body = {
        "content": [],  # with a text, no tokens of it would be no answer's
        "stop_reason": "end_turn",
        "model": "claude-haiku-4-5",
        "usage": usage,
    }
    raw = httpx2.Response(200, content=json.dumps(body).encode())
    monkeypatch.setattr(AnthropicService, "_ask", AsyncMock(return_value=raw))
    request = GenerationRequest(provider="anthropic", model="claude-haiku-4-5", prompt="x")
    service = AnthropicService(api_key="k")
    answer = asyncio.run(service.generate_text(request, None))
    tokens = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
    prices = Prices()
    plain = prices.cost("anthropic", answer.model, **tokens)
    real = prices.cost(
        "anthropic", answer.model, cache_write_tokens=answer.cache_write_tokens, **tokens
    )
    assert plain is not None
    assert real == plain * Decimal("1.25")
