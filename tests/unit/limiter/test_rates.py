"""The rates that are kept of a model say what genai-prices says."""

import random
from datetime import UTC, datetime

import pytest
from genai_prices import data_snapshot

from promptstack.services.accounting.prices import GENAI_PRICES_NAMES, Prices, listed_cost, rates_of


@pytest.mark.parametrize("provider", GENAI_PRICES_NAMES.values())
def test_rates_and_the_price_list_agree_on_every_model(provider: str) -> None:
    numbers = random.Random(provider)
    today = datetime.now(UTC).date()
    listed = data_snapshot.get_snapshot().providers
    (models,) = (of.models for of in listed if of.id == provider)
    with_rates = 0
    for model in models:
        rates = rates_of(provider, model.id, today)
        with_rates += rates is not None
        for _ in range(20 if rates else 0):
            fresh, cached, written, output = (
                numbers.choice([0, 1, 17, numbers.randrange(2_000_000)]) for _ in range(4)
            )
            assert rates is not None
            assert rates.cost(fresh, cached, written, output) == listed_cost(
                provider,
                model.id,
                input_tokens=fresh + cached + written,
                output_tokens=output,
                cache_read_tokens=cached or None,
                cache_write_tokens=written or None,
            ), model.id
    assert with_rates


def test_a_model_with_steps_or_without_a_price_has_no_rates() -> None:
    today = datetime.now(UTC).date()
    assert rates_of("google", "gemini-2.5-pro", today) is None
    assert rates_of("openai", "a-model-of-my-own", today) is None
    assert Prices().cost("openai", "a-model-of-my-own", input_tokens=1, output_tokens=1) is None
