"""What a provider answers: texts, vectors, the tokens they used, and its rate limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BYTES_PER_TOKEN = 4
"""Of UTF-8, where tokens are estimated."""
Dimension = Literal["requests", "tokens", "input", "output"]
"""What a limit per minute counts: calls, all tokens, or input and output tokens separately."""


class Outcome(StrEnum):
    """How a call ended, as the limiter and its circuit breaker see it."""

    ANSWERED = "answered"
    THROTTLED = "throttled"
    """The provider reported that a limit is reached."""
    FAILED = "failed"
    """The provider is overloaded, failing or unreachable."""
    REFUSED = "refused"
    """The provider works; it refused this one request."""
    QUOTA = "quota"
    MODEL_QUOTA = "model_quota"
    """The account has quota left, but not for this model."""
    CANCELLED = "cancelled"
    UNUSED = "unused"
    """No call was made."""


@dataclass(frozen=True)
class LimitState:
    """One limit as the provider reported it with an answer."""

    limit: int
    """Per minute."""
    remaining: int


@dataclass(frozen=True)
class LimitReport:
    """The limits that an answer or a refusal reported; empty where it reported none."""

    limits: Mapping[Dimension, LimitState] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """The tokens that a call used; None where the answer does not say, or says nonsense."""

    input_tokens: int | None
    output_tokens: int | None = 0
    cached_tokens: int | None = 0
    """Input tokens that the provider read from its cache."""
    cache_write_tokens: int | None = 0
    """Input tokens that it wrote to its cache, where that has its own price."""


@dataclass(frozen=True)
class LLMResponse:
    """A generated text and the tokens that it used."""

    text: str
    model: str
    input_tokens: int | None
    """None where the provider does not say; so are the other tokens."""
    output_tokens: int | None
    finish_reason: str
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    cached_tokens: int | None = 0
    """Input tokens that the provider read from its cache."""
    cache_write_tokens: int | None = 0
    """Input tokens that it wrote to its cache, where that has its own price."""
    tool_calls: tuple[dict[str, JsonValue], ...] = ()
    """The tool calls that the model asks for, each with `id`, `name` and `arguments`."""
    limits: LimitReport | None = None
    note: str = ""
    """Which fields of the answer were malformed and count as unknown; it holds no content."""

    @property
    def tokens_used(self) -> int | None:
        """Input and output tokens together, where both are known."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class EmbeddingResponse:
    """One vector for each text, in the order of the texts."""

    vectors: "npt.NDArray[np.float32]" = field(repr=False)
    """Shape (texts, dimensions)."""
    model: str
    input_tokens: int | None
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    limits: LimitReport | None = None
    note: str = ""
    """Which fields of the answer were malformed."""
    others: "Mapping[int, npt.NDArray[np.float32]]" = field(default_factory=dict, repr=False)
    """Vectors of another size, by position; `vectors` has zeros there. See `store_vectors`."""

    def sizes(self) -> list[int]:
        """The size of each text's vector."""
        size = self.vectors.shape[1]
        return [
            len(self.others[place]) if place in self.others else size
            for place in range(len(self.vectors))
        ]

    def of_size(self, size: int) -> "tuple[list[int], npt.NDArray[np.float32]]":
        """The positions of the texts whose vectors have this size, and these vectors."""
        import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

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
    """What calls that cost nothing found out about a provider."""

    answers: bool
    can: tuple[Capability, ...] = ()
    models: tuple[str, ...] | None = None
    """The models that it lists; None where it has no list."""
    reason: str = ""
    """Why it does not answer."""


@dataclass(frozen=True)
class TokenCount:
    """How many tokens a text has."""

    tokens: int
    is_exact: bool
    """False for an estimate."""
