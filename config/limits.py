"""The rate limits that a person sets for a provider's models."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveCount = Annotated[int, Field(ge=1, le=10**12)]


class ModelLimits(BaseModel):
    """The limits of one credential for a model. A missing value sets no limit.

    The provider's headers set limits too; the lower one holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str = "*"
    """A model's name, or a pattern such as `gpt-5*`; each model that matches has its own limit."""
    requests_per_minute: PositiveCount | None = None
    tokens_per_minute: PositiveCount | None = None
    """Input and output together, for providers that count so."""
    input_tokens_per_minute: PositiveCount | None = None
    output_tokens_per_minute: PositiveCount | None = None
    in_flight: PositiveCount | None = None
    """Calls under way at once."""
    burst_seconds: float = Field(default=1.0, gt=0, le=60)
    """Seconds' worth of calls that may leave at once after a rest; more where headers say so."""
