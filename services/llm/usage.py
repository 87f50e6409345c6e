"""How many tokens an answer says that it used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Usage:
    """Tokens of a call; None where the answer says nothing that can be."""

    input_tokens: int | None
    output_tokens: int | None = 0
    cached_tokens: int | None = 0
    """How many of the input tokens the provider had in its cache."""
    cache_write_tokens: int | None = 0
    """How many of the input tokens it put there, where that has a price of its own."""
