"""What a provider answers: texts and vectors, what they took, and what it says of itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

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


@dataclass(frozen=True)
class Usage:
    """Tokens of a call; None where the answer says nothing that can be."""

    input_tokens: int | None
    output_tokens: int | None = 0
    cached_tokens: int | None = 0
    """How many of the input tokens the provider had in its cache."""
    cache_write_tokens: int | None = 0
    """How many of the input tokens it put there, where that has a price of its own."""


@dataclass(frozen=True)
class LLMResponse:
    """A generated text and what it cost in tokens."""

    text: str
    model: str
    input_tokens: int | None
    """None, as with the other tokens, where the provider doesn't say."""
    output_tokens: int | None
    finish_reason: str
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    cached_tokens: int | None = 0
    """How many of the input tokens the provider had in its cache."""
    cache_write_tokens: int | None = 0
    """How many of the input tokens it put there, where that has a price of its own."""
    tool_calls: tuple[dict[str, JsonValue], ...] = ()
    """The tools that the model wants called: `id`, `name` and `arguments` each."""
    limits: LimitReport | None = None
    note: str = ""
    """What was odd in the answer and counts as unknown: names of fields, no content."""

    @property
    def tokens_used(self) -> int | None:
        """Input and output tokens together, where both are known."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class EmbeddingResponse:
    """One vector for each text, in the order of the texts."""

    vectors: npt.NDArray[np.float32] = field(repr=False)
    """Shape (texts, dimensions)."""
    model: str
    input_tokens: int | None
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    limits: LimitReport | None = None
    note: str = ""
    """What was odd in the answer."""
    others: Mapping[int, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False)
    """Those of another size, by their place, where `vectors` has zeros: see `store_vectors`."""

    def sizes(self) -> list[int]:
        """How many numbers the vector of each text has."""
        size = self.vectors.shape[1]
        return [
            len(self.others[place]) if place in self.others else size
            for place in range(len(self.vectors))
        ]

    def of_size(self, size: int) -> tuple[list[int], npt.NDArray[np.float32]]:
        """The places of the texts whose vectors have this size, and their vectors."""
        places = [place for place, found in enumerate(self.sizes()) if found == size]
        if size == self.vectors.shape[1]:
            return places, self.vectors[places] if self.others else self.vectors
        found = [self.others[place] for place in places]
        return places, np.array(found, dtype=np.float32).reshape(len(places), size)


class Capability(StrEnum):
    """What a provider can be asked for."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


@dataclass(frozen=True)
class Examined:
    """What a provider is found to be, without a call that costs anything."""

    answers: bool
    can: tuple[Capability, ...] = ()
    models: tuple[str, ...] | None = None
    """As it lists them; None where it has no list."""
    reason: str = ""
    """Why it doesn't answer."""


@dataclass(frozen=True)
class TokenCount:
    """How many tokens a text is."""

    tokens: int
    is_exact: bool
    """False for an estimate."""
