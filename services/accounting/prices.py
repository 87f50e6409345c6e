"""What a call costs, by the prices that a person has set, or by those of genai-prices."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, NamedTuple

from promptstack.config.models_file import ModelPrice

IN_THIS_PROCESS = frozenset({"demo", "local"})
"""Providers without a network, which cost nothing."""
GENAI_PRICES_NAMES = {"openai": "openai", "anthropic": "anthropic", "gemini": "google"}
"""The names in genai-prices of our providers at their own addresses, and of no other server."""
MOST_DOLLARS = 10**8
"""The largest cost in the ledger's column, far above any real call."""
MILLION = 1_000_000
RATES = ("input_mtok", "cache_read_mtok", "cache_write_mtok", "output_mtok")
"""What genai-prices calls the rates of the tokens that we count."""
ELSEWHERE = frozenset(
    {
        "input_audio_mtok",
        "output_audio_mtok",
        "cache_audio_read_mtok",
        "web_searches_kcount",
        "storage_searches_kcount",
    }
)
"""Rates that never apply to our calls."""
DIGITS = Decimal("0.0000000001")
"""The precision of the ledger's column."""


class Prices:
    """Knows prices offline: the package genai-prices has its list with it."""

    def __init__(
        self,
        overrides: Sequence[ModelPrice] = (),
        known_as: Mapping[str, str | None] = GENAI_PRICES_NAMES,
    ) -> None:
        """Set up with `overrides`, the first of which counts.

        `known_as` maps our providers to their names in genai-prices. On another server, a model of
        the same name has another price.
        """
        self._overrides = overrides
        self._known_as = known_as

    def cost(
        self,
        provider: str,
        model: str,
        *,
        input_tokens: int | None,
        output_tokens: int | None,
        cached_tokens: int | None = 0,
        cache_write_tokens: int | None = 0,
    ) -> Decimal | None:
        """Return the cost of a call in US dollars, or None if it isn't known: never a guess.

        `cached_tokens` and `cache_write_tokens` are parts of the input tokens; overrides have no
        price for the latter. Never raises, as the call is already paid for.
        """
        if (
            input_tokens is None
            or output_tokens is None
            or cached_tokens is None
            or cache_write_tokens is None
        ):
            return None
        rest = input_tokens - cached_tokens - cache_write_tokens
        if min(input_tokens, output_tokens, cached_tokens, cache_write_tokens, rest) < 0:
            return None
        for price in self._overrides:
            if price.provider == provider and fnmatchcase(model, price.model):
                return _by(price, input_tokens, output_tokens, cached_tokens)
        if provider in IN_THIS_PROCESS:
            return Decimal(0)
        known = self._known_as.get(provider)
        rates = rates_of(known, model, datetime.now(UTC).date())
        if rates is not None:
            return rates.cost(rest, cached_tokens, cache_write_tokens, output_tokens)
        return listed_cost(
            known,
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


class Rates(NamedTuple):
    """A model's dollars for a million tokens, if its price consists of nothing else."""

    input: Decimal
    cache_read: Decimal
    cache_write: Decimal
    output: Decimal

    def cost(self, fresh: int, cached: int, written: int, output: int) -> Decimal | None:
        """What these tokens cost; cached and written ones are not among the fresh ones."""
        dollars = (
            self.input * fresh
            + self.cache_read * cached
            + self.cache_write * written
            + self.output * output
        ) / MILLION
        is_priced = 0 < dollars < MOST_DOLLARS or not fresh + cached + written + output
        return dollars.quantize(DIGITS) if is_priced else None


@lru_cache(maxsize=1_000)
def rates_of(provider: str | None, model: str, _: date) -> Rates | None:
    """The rates of a model on a day; None if its price is unknown or has steps.

    Asking genai-prices at each call would cost a worker more time than all its work in the ledger.
    """
    if provider is None:
        return None
    from genai_prices import Usage, calc_price  # noqa: PLC0415

    try:
        found = calc_price(Usage(input_tokens=1), model_ref=model, provider_id=provider)
    except (LookupError, ValueError):
        return None
    if any(price.constraint for price in _dated(found.model.prices)):
        return None  # it may change within the day
    known = {rate: value for rate, value in vars(found.model_price).items() if value is not None}
    rates = {rate: known.pop(rate, None) for rate in RATES}
    if not all(value is None or isinstance(value, Decimal) for value in rates.values()):
        return None
    input_, read, write, output = rates.values()
    if input_ is None or output is None or not ELSEWHERE.issuperset(known):
        return None
    return Rates(
        input_, input_ if read is None else read, input_ if write is None else write, output
    )


@lru_cache(maxsize=1_000)
def maker_of(model: str) -> str | None:
    """Whose model has this name, by the provider's name in genai-prices; None if it isn't known.

    Clouds list the models of others too, so what a name begins with goes first.
    """
    from genai_prices.data_snapshot import get_snapshot  # noqa: PLC0415

    listed = get_snapshot()
    known = GENAI_PRICES_NAMES.values()
    with suppress(LookupError):
        maker = listed.find_provider(model, None, None).id
        return maker if maker in known else None
    for maker in known:
        with suppress(LookupError):
            listed.find_provider_model(model, None, maker, None)
            return maker
    return None


def _dated(prices: Any) -> Sequence[Any]:
    """The prices of a model that has several: over the years, or by the time of day."""
    return prices if isinstance(prices, list) else []


def listed_cost(provider: str | None, model: str, **tokens: int | None) -> Decimal | None:
    """What genai-prices says a call costs; None for an unknown model."""
    if provider is None:
        return None
    # Imported here: it takes 0.3 s, and most commands need no price.
    from genai_prices import Usage, calc_price  # noqa: PLC0415

    usage = Usage(**tokens)
    try:
        known = calc_price(usage, model_ref=model, provider_id=provider)
    except (LookupError, ValueError):
        return None  # somebody's own model or provider
    # A model that isn't priced by tokens has no cost here, and not a cost of zero.
    is_priced = 0 < known.total_price < MOST_DOLLARS or not any(tokens.values())
    return known.total_price.quantize(DIGITS) if is_priced else None
