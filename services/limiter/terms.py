"""The words between the limiter and those who ask it."""

from dataclasses import dataclass
from typing import NamedTuple

from promptstack.config.models_file import ModelLimits
from promptstack.services.llm.limit_report import Dimension, LimitReport, Outcome


class Bucket(NamedTuple):
    """What is limited together."""

    provider: str
    credential: str
    """A fingerprint of the key, never the key."""
    model: str

    @property
    def name(self) -> str:
        """For a person."""
        return f"{self.provider}/{self.model}"


@dataclass(frozen=True)
class Need:
    """What a call is expected to take."""

    input_tokens: int
    output_tokens: int = 0
    is_bulk: bool = False
    """Whether interactive calls go before it."""


@dataclass(frozen=True)
class Settlement:
    """What a call came to."""

    outcome: Outcome
    latency_seconds: float = 0.0
    retry_after: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    report: LimitReport | None = None


@dataclass(frozen=True)
class Limits:
    """The limits that hold for a bucket now, a minute; None where none is known."""

    requests: float | None = None
    tokens: float | None = None
    input: float | None = None
    output: float | None = None
    in_flight: float | None = None
    """Calls under way at once."""

    @classmethod
    def of(cls, settings: ModelLimits) -> "Limits":
        """What settings say."""
        return cls(
            requests=settings.requests_per_minute,
            tokens=settings.tokens_per_minute,
            input=settings.input_tokens_per_minute,
            output=settings.output_tokens_per_minute,
            in_flight=settings.in_flight,
        )

    def within(self, others: "Limits") -> "Limits":
        """The narrower of both, each."""
        pairs = zip(vars(self).values(), vars(others).values(), strict=True)
        return Limits(
            *(min((one for one in pair if one is not None), default=None) for pair in pairs)
        )


@dataclass(frozen=True)
class Grant:
    """A call that may leave. What it was charged is put right when it is settled."""

    waiter: str
    limits: Limits
    charge: str = ""
    """What the scripts note of the call for its settlement, in their own words."""


@dataclass(frozen=True)
class Wait:
    """A call that may leave soon."""

    seconds: float
    """Until its turn, as far as is known."""


@dataclass(frozen=True)
class Later:
    """A call that must wait longer than anybody should wait for it in a worker."""

    seconds: float
    why: str


@dataclass(frozen=True)
class Closed:
    """A provider that isn't asked now: its circuit is open."""

    seconds: float


@dataclass(frozen=True)
class Spent:
    """A credential without quota."""


@dataclass(frozen=True)
class TooLarge:
    """A call that no waiting lets through."""

    limit: float
    """A minute."""
    dimension: str


Verdict = Grant | Wait | Later | Closed | Spent | TooLarge

DIMENSIONS: tuple[Dimension, ...] = ("requests", "tokens", "input", "output")
"""In the order in which the script has them."""
