"""The types of the limiter: what is asked, what it answers, and how a call ended."""

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from promptstack.config.models_file import ModelLimits
from promptstack.repositories.access_models import Tier
from promptstack.services.llm.answers import Dimension, LimitReport, Outcome


class Bucket(NamedTuple):
    """What shares one rate limit: the calls of a credential to a model."""

    provider: str
    credential: str
    """A fingerprint of the key, never the key."""
    model: str

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True)
class Need:
    """What a call is expected to use."""

    input_tokens: int
    output_tokens: int = 0
    is_bulk: bool = False
    """Whether interactive calls go first."""
    user_id: UUID | None = None
    """Whose call it is: users take turns. Calls without a user are those of one more user."""
    tier: Tier = Tier.FREE
    """How large the user's share is beside the others'."""


@dataclass(frozen=True)
class Settlement:
    """How a call ended and what it used."""

    outcome: Outcome
    latency_seconds: float = 0.0
    retry_after: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    report: LimitReport | None = None


@dataclass(frozen=True)
class Limits:
    """The limits of a bucket per minute; None where none is known."""

    requests: float | None = None
    tokens: float | None = None
    input: float | None = None
    output: float | None = None
    in_flight: float | None = None
    """Calls at the same time."""

    @classmethod
    def of(cls, settings: ModelLimits) -> "Limits":
        """The limits that a person has set."""
        return cls(
            requests=settings.requests_per_minute,
            tokens=settings.tokens_per_minute,
            input=settings.input_tokens_per_minute,
            output=settings.output_tokens_per_minute,
            in_flight=settings.in_flight,
        )

    def within(self, others: "Limits") -> "Limits":
        """Of each limit the lower of both."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return Limits(
            *(min((one for one in pair if one is not None), default=None) for pair in pairs)
        )


@dataclass(frozen=True)
class Grant:
    """The call may be sent. Its settlement corrects what it was charged."""

    waiter: str
    limits: Limits
    charge: str = ""
    """What the scripts need to settle the call, as JSON that only they read."""


@dataclass(frozen=True)
class Wait:
    """The call may be sent soon."""

    seconds: float
    """Until its turn, as estimated."""


@dataclass(frozen=True)
class Later:
    """The call must wait longer than a worker should wait for it."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Closed:
    """The circuit of the provider is open."""

    seconds: float


@dataclass(frozen=True)
class Spent:
    """The credential or the model has no quota left."""


@dataclass(frozen=True)
class TooLarge:
    """The call needs more than a minute's limit."""

    limit: float
    """Per minute."""
    dimension: str


Verdict = Grant | Wait | Later | Closed | Spent | TooLarge

DIMENSIONS: tuple[Dimension, ...] = ("requests", "tokens", "input", "output")
"""The limits that count what is used per minute."""
