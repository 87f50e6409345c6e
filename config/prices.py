"""The prices of models that an operator sets."""

from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer


def plain(amount: Decimal) -> str:
    """Return an amount in plain digits. PostgreSQL's zero would print as 0E-10."""
    return f"{amount.normalize():f}"


Dollars = Annotated[Decimal, Field(ge=0, le=1_000_000)]
Money = Annotated[Decimal, PlainSerializer(plain, when_used="json")]
"""An amount that JSON shows in plain digits."""


class ModelPrice(BaseModel):
    """What a model costs, in US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str = "*"
    """A model's name, or a pattern such as `llama-*`."""
    input_per_million: Dollars
    output_per_million: Dollars = Decimal(0)
    cached_input_per_million: Dollars | None = None
    """Of input tokens that the provider had in its cache; as other input where it isn't given."""
