"""What a call cost, by what a person has set or by the known prices of the world's models."""

from collections.abc import Sequence
from decimal import Decimal
from fnmatch import fnmatchcase

from config.prices import ModelPrice

IN_THIS_PROCESS = frozenset({"demo", "local"})
"""Providers that ask nobody, so that their price is known: nothing."""
GENAI_PRICES_NAMES = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
"""Of our providers. No others: it would take a `my-openai` for OpenAI."""
MOST_DOLLARS = 10**8
"""What the ledger's column holds, far above any real call."""
MILLION = 1_000_000
DIGITS = Decimal("0.0000000001")
"""What the ledger's column holds."""


class Prices:
    """Knows prices offline: those of genai-prices are part of the package."""

    def __init__(self, overrides: Sequence[ModelPrice] = ()) -> None:
        """Take `overrides` in the order of their precedence."""
        self._overrides = overrides

    def cost(
        self,
        provider: str,
        model: str,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        cached_tokens: int = 0,
        cache_write_tokens: int = 0,
    ) -> Decimal | None:
        """Return the cost of a call in US dollars, or None where it isn't known: never a guess.

        `cached_tokens` and `cache_write_tokens` are parts of the input tokens; of the latter a
        person's prices know none of their own. Never raises: the call is paid for already.
        """
        if input_tokens is None or output_tokens is None:
            return None
        rest = input_tokens - cached_tokens - cache_write_tokens
        if min(input_tokens, output_tokens, cached_tokens, cache_write_tokens, rest) < 0:
            return None
        for price in self._overrides:
            if price.provider == provider and fnmatchcase(model, price.model):
                return _by(price, input_tokens, output_tokens, cached_tokens)
        if provider in IN_THIS_PROCESS:
            return Decimal(0)
        return _known(
            provider,
            model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cache_read_tokens=cached_tokens or None,
            cache_write_tokens=cache_write_tokens or None,
        )


def _by(
    price: ModelPrice, input_tokens: int, output_tokens: int, cached_tokens: int
) -> Decimal | None:
    cached_price = price.cached_input_per_million
    if cached_price is None:
        cached_price = price.input_per_million
    dollars = (
        price.input_per_million * (input_tokens - cached_tokens)
        + cached_price * cached_tokens
        + price.output_per_million * output_tokens
    )
    dollars /= MILLION
    return dollars.quantize(DIGITS) if dollars < MOST_DOLLARS else None


def _known(provider: str, model: str, **tokens: int | None) -> Decimal | None:
    if provider not in GENAI_PRICES_NAMES:
        return None
    # Here, because it takes 0.3 s to import and most commands ask for no price.
    from genai_prices import Usage, calc_price  # noqa: PLC0415

    usage = Usage(**tokens)
    try:
        known = calc_price(usage, model_ref=model, provider_id=GENAI_PRICES_NAMES[provider])
    except (LookupError, ValueError):
        return None  # a model or a provider of somebody's own
    # Of a model that isn't priced by tokens, the list says nothing and not zero.
    is_priced = 0 < known.total_price < MOST_DOLLARS or not any(tokens.values())
    return known.total_price.quantize(DIGITS) if is_priced else None
