"""What a call tells of its provider: how it ended, and what was said about rate limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Dimension = Literal["requests", "tokens", "input", "output"]
"""What is limited a minute: calls, all tokens, or input and output tokens apart."""


class Outcome(StrEnum):
    """How a call ended, as the limiter and the circuit see it."""

    ANSWERED = "answered"
    THROTTLED = "throttled"
    """The provider said that a limit is reached."""
    FAILED = "failed"
    """The provider is overloaded, broken or out of reach."""
    REFUSED = "refused"
    """The provider is well; this one request isn't."""
    QUOTA = "quota"
    MODEL_QUOTA = "model_quota"
    """The account has quota, and this model none."""
    CANCELLED = "cancelled"
    UNUSED = "unused"
    """No call was made."""


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
