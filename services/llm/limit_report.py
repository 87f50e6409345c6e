"""What a provider's answer says about its rate limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Dimension = Literal["requests", "tokens", "input", "output"]
"""What is limited a minute: calls, all tokens, or input and output tokens apart."""


@dataclass(frozen=True)
class LimitState:
    """One limit as the provider saw it when it let a call in."""

    limit: int
    """A minute."""
    remaining: int


@dataclass(frozen=True)
class LimitReport:
    """The limits that an answer, good or bad, told of; nothing where it told nothing."""

    limits: Mapping[Dimension, LimitState] = field(default_factory=dict)
