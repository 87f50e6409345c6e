"""The one interface behind which every provider stands."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationInfo,
    model_validator,
)

from services.errors import InvalidInput, UnknownModel
from services.llm.errors import BadResponse, InvalidProviderRequest, ProviderError
from services.llm.limit_report import LimitReport
from services.text import check_storable

logger = logging.getLogger(__name__)


MAX_MODEL_CHARACTERS = 200
MAX_FALLBACKS = 5


class Capability(StrEnum):
    """What a provider can be asked for."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


def _storable(text: str, info: ValidationInfo) -> str:
    return check_storable(text, f"{info.field_name or 'text'}")


Text = Annotated[str, AfterValidator(_storable)]
"""A string that PostgreSQL can hold: no NUL, no lone surrogate."""


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user", "assistant"]
    content: Annotated[Text, Field(min_length=1)]


class Fallback(BaseModel):
    """Who answers a generation where the provider that was named first can't."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str | None = None
    """The provider's default when None."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters of this provider; those of the first one don't go to it."""


class GenerationRequest(BaseModel):
    """What to generate: a prompt or a conversation, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str
    model: str
    prompt: Annotated[Text, Field(min_length=1)] | None = None
    messages: tuple[Message, ...] = ()
    system: Text | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    stop: tuple[Text, ...] = ()
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Parameters that only this provider knows, passed through as they are."""
    fallbacks: tuple[Fallback, ...] = Field(default=(), max_length=MAX_FALLBACKS)
    """Asked in this order on overload, outage, open circuit and spent quota."""

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either prompt or messages")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
        return self

    def targets(self) -> list[Self]:
        """The request as each provider gets it: the first one, then the fallbacks."""
        others = [
            self.model_copy(
                update={
                    "provider": fallback.provider,
                    "model": fallback.model,
                    "options": fallback.options,
                    "fallbacks": (),
                }
            )
            for fallback in self.fallbacks
        ]
        return [self, *others]

    def conversation(self) -> list[Message]:
        """The whole input as turns, the system prompt first."""
        turns = list(self.messages)
        if self.prompt is not None:
            turns = [Message(role="user", content=self.prompt)]
        if self.system:
            turns.insert(0, Message(role="system", content=self.system))
        return turns


@dataclass(frozen=True)
class LLMResponse:
    """A generated text and what it cost in tokens."""

    text: str
    model: str
    input_tokens: int
    output_tokens: int
    finish_reason: str
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    cached_tokens: int = 0
    """How many of the input tokens the provider had in its cache."""
    tool_calls: tuple[dict[str, JsonValue], ...] = ()
    """The tools that the model wants called: `id`, `name` and `arguments` each."""
    limits: LimitReport | None = None

    @property
    def tokens_used(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens


@dataclass(frozen=True)
class EmbeddingResponse:
    """One vector for each text, in the order of the texts."""

    vectors: npt.NDArray[np.float32] = field(repr=False)
    """Shape (texts, dimensions)."""
    model: str
    input_tokens: int
    provider_request_id: str | None = None
    latency_seconds: float = 0.0
    limits: LimitReport | None = None


@dataclass(frozen=True)
class EmbeddingLimits:
    """What one embedding request may hold."""

    items: int
    """Texts a request."""
    bytes: int
    """UTF-8 bytes a request."""
    tokens: int | None = None
    """Tokens a request, as `estimate_tokens` counts them, where bytes don't bound them."""


class LLMService(ABC):
    """A provider of generations, embeddings or both.

    Subclasses implement `_generate` and `_embed` and translate their SDK's errors. The public
    calls time them, check what came back and log the outcome without any content.
    """

    name: ClassVar[str]
    """The provider's name in jobs and settings."""

    default_models: ClassVar[Mapping[Capability, str]] = {}
    """The model taken when a caller names none. A missing capability isn't offered."""

    known_models: ClassVar[Mapping[Capability, frozenset[str]] | None] = None
    """The models that exist, or None where only the provider itself knows."""

    known_options: ClassVar[frozenset[str] | None] = frozenset()
    """The provider-specific parameters it takes, or None where it passes all on."""

    is_limited: ClassVar[bool] = True
    """Whether somebody else's rate limits apply; not for what runs inside this process."""

    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(items=256, bytes=1_000_000)

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    @classmethod
    def choose_model(cls, capability: Capability, model: str | None) -> str:
        """Return the model to use, the provider's default when `model` is None.

        Raises `UnknownModel` when the provider doesn't have it for this capability.
        """
        default = cls.default_models.get(capability)
        if default is None:
            raise UnknownModel(f"Provider '{cls.name}' offers no {capability} models.")
        chosen = default if model is None else check_storable(model.strip(), "The model's name")
        known = None if cls.known_models is None else cls.known_models[capability]
        if not 0 < len(chosen) <= MAX_MODEL_CHARACTERS or (
            known is not None and chosen not in known
        ):
            names = ", ".join(sorted(known)) if known else f"for example {default}"
            raise UnknownModel(
                f"Provider '{cls.name}' has no {capability} model {chosen[:80]!r}. Known: {names}."
            )
        return chosen

    @classmethod
    def check_options(cls, options: Mapping[str, JsonValue]) -> None:
        """Raise `InvalidInput` for provider-specific parameters that the provider doesn't know."""
        if cls.known_options is None:
            return
        unknown = sorted(set(options) - cls.known_options)
        if unknown:
            known = ", ".join(sorted(cls.known_options)) or "none"
            raise InvalidInput(
                f"Provider '{cls.name}' has no option {', '.join(unknown)[:200]}. Known: {known}."
            )

    async def generate_text(
        self, request: GenerationRequest, user_id: UUID | None, *, failures: int = 0
    ) -> LLMResponse:
        """Ask for one generation.

        `failures` is how often this job has failed before; only the demonstration looks at it.
        Raises a `ProviderError` subclass; any other exception is a bug in the service.
        """
        started = self._clock()
        try:
            response = await self._generate(request, user_id, failures)
        except ProviderError as error:
            self._log_failure("generation", request.model, error, started)
            raise
        response = replace(response, latency_seconds=self._clock() - started)
        logger.info(
            "generation by %s/%s: %d+%d tokens in %.3f s",
            self.name,
            response.model,
            response.input_tokens,
            response.output_tokens,
            response.latency_seconds,
        )
        return response

    async def embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        """Ask for one vector a text, as float32 of shape (len(texts), dimensions).

        Raises a `ProviderError` subclass. A wrong count, a wrong shape or a number that isn't
        finite is a `BadResponse`: such vectors are never returned.
        """
        started = self._clock()
        try:
            response = await self._embed(texts, model, user_id)
            _check_vectors(response.vectors, len(texts), self.name)
        except ProviderError as error:
            self._log_failure("embedding", model, error, started)
            raise
        response = replace(response, latency_seconds=self._clock() - started)
        logger.info(
            "embedding by %s/%s: %d texts, %d tokens in %.3f s",
            self.name,
            response.model,
            len(texts),
            response.input_tokens,
            response.latency_seconds,
        )
        return response

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        raise InvalidProviderRequest(f"Provider '{self.name}' offers no generation models.")

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        raise InvalidProviderRequest(f"Provider '{self.name}' offers no embedding models.")

    @property
    def credential(self) -> str:
        """A fingerprint of the key, by which limits are kept; never the key."""
        return "none"

    def estimate_tokens(self, text: str) -> int:
        """A quick estimate: a quarter of the UTF-8 bytes, rounded up."""
        return -(-len(text.encode()) // 4)

    @abstractmethod
    def count_tokens(self, text: str) -> int:
        """How many tokens `text` is for this provider, or a documented estimate."""

    @abstractmethod
    async def is_available(self) -> bool:
        """Whether the provider answers now. Never raises for an unreachable provider."""

    async def aclose(self) -> None:  # noqa: B027 - most services hold nothing to close
        """Close pooled connections."""

    def _log_failure(self, what: str, model: str, error: ProviderError, started: float) -> None:
        logger.warning(
            "%s by %s/%s failed after %.3f s: %s (status %s, request %s)",
            what,
            self.name,
            model,
            self._clock() - started,
            error.code,
            error.status,
            error.request_id,
        )


def _check_vectors(vectors: npt.NDArray[np.float32], texts: int, provider: str) -> None:
    if vectors.ndim != 2 or vectors.shape[0] != texts or vectors.shape[1] == 0:
        raise BadResponse(
            f"{provider} answered vectors of shape {vectors.shape} for {texts} texts; "
            "nothing was stored."
        )
    if not np.isfinite(vectors).all():
        raise BadResponse(f"{provider} answered numbers that are not finite; nothing was stored.")
