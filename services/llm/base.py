"""The one interface behind which every provider stands."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import ClassVar, Self
from uuid import UUID

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from promptstack.config.providers import ModelFacts, NamedProvider
from promptstack.services.errors import InvalidInput, UnknownModel
from promptstack.services.llm.errors import BadResponse, InvalidProviderRequest, ProviderError
from promptstack.services.llm.limit_report import LimitReport
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.text import check_name

logger = logging.getLogger(__name__)


MAX_MODEL_CHARACTERS = 200
BYTES_PER_TOKEN = 4


class Capability(StrEnum):
    """What a provider can be asked for."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


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


@dataclass(frozen=True)
class EmbeddingLimits:
    """What one embedding request may hold."""

    items: int
    """Texts a request."""
    bytes: int
    """UTF-8 bytes a request."""
    text_bytes: int | None = None
    """UTF-8 bytes of one text, above which it is surely too long; else the provider says so."""
    tokens: int | None = None
    """Tokens a request, as `estimate_tokens` counts them, where bytes don't bound them."""
    text_tokens: int | None = None
    """The model's own tokens of one text."""


class LLMService(ABC):
    """A provider of generations, embeddings or both.

    Subclasses implement `_generate` and `_embed` and translate their SDK's errors. The public
    calls time them, check what came back and log the outcome without any content.
    """

    name: ClassVar[str]
    """The provider's name in jobs and settings."""

    default_models: ClassVar[Mapping[Capability, str | None]] = {}
    """The model taken when a caller names none, None where one must be named. A missing capability
    isn't offered."""

    known_models: ClassVar[Mapping[Capability, frozenset[str]] | None] = None
    """The models that exist, or None where only the provider itself knows."""

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """The fields of a `GenerationRequest` that it can't honour."""

    known_options: ClassVar[frozenset[str] | None] = frozenset()
    """The provider-specific parameters it takes, or None where it passes all on."""

    is_limited: ClassVar[bool] = True
    """Whether somebody else's rate limits apply; not for what runs inside this process."""

    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(items=256, bytes=1_000_000)

    facts: ClassVar[Sequence[ModelFacts]] = ()
    """What MODELS_FILE says of its models; the first that matches holds."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def check_configured(self) -> None:  # noqa: B027 - for most there is nothing to check
        """Raise `NotConfigured` where no call could leave: before one is recorded and counted."""

    @classmethod
    def configured(cls, provider: NamedProvider | None, facts: Sequence[ModelFacts]) -> type[Self]:
        """The same class as a person has set it up: for a server of its own name, with `facts`."""
        return type(cls.__name__, (cls,), {"facts": tuple(facts), **cls._members(provider)})

    @classmethod
    def _members(cls, provider: NamedProvider | None) -> dict[str, object]:
        """What is otherwise than in this class for a server that a person has named."""
        return {}

    @classmethod
    def facts_of(cls, model: str) -> ModelFacts:
        """What MODELS_FILE says of a model."""
        found = (facts for facts in cls.facts if fnmatchcase(model, facts.model))
        return next(found, ModelFacts(provider=cls.name))

    @classmethod
    def stated_limits(cls, model: str) -> EmbeddingLimits:
        """What one embedding request to a model may hold, as far as is known before any call."""
        limits, facts = cls.embedding_limits, cls.facts_of(model)
        return replace(
            limits,
            items=facts.texts_per_call or limits.items,
            tokens=facts.tokens_per_call or limits.tokens,
            text_tokens=facts.tokens_per_text or limits.text_tokens,
        )

    def limits_of(self, model: str) -> EmbeddingLimits:
        """What one embedding request to a model may hold, as far as is known by now."""
        return self.stated_limits(model)

    @classmethod
    def choose_model(cls, capability: Capability, model: str | None) -> str:
        """Return the model to use, the provider's default when `model` is None.

        Raises `UnknownModel` when the provider doesn't have it for this capability.
        """
        if capability not in cls.default_models:
            raise UnknownModel(f"Provider '{cls.name}' offers no {capability} models.")
        default = cls.default_models[capability]
        if model is None and default is None:
            raise UnknownModel(
                f"Provider '{cls.name}' is a server whose models nobody has named: name the "
                f"{capability} model, or set its {capability}_model in MODELS_FILE."
            )
        chosen = default if model is None else check_name(model.strip(), "The model's name")
        chosen = chosen or ""
        known = None if cls.known_models is None else cls.known_models[capability]
        if not 0 < len(chosen) <= MAX_MODEL_CHARACTERS or (
            known is not None and chosen not in known
        ):
            names = ", ".join(sorted(known or ())) or (
                f"for example {default}" if default else "none"
            )
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

    @classmethod
    def take_openai_options(cls, options: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """The options for what only a request to OpenAI can ask. Raises `InvalidInput`.

        `api` among them names the endpoint, which another wire has one of.
        """
        other = sorted(options.keys() - {"api"})
        if other:
            raise InvalidInput(
                f"Provider '{cls.name}' does not know {', '.join(other)[:200]} of a request to "
                "OpenAI; leave it out."
            )
        return {}

    @classmethod
    def check_request(cls, request: GenerationRequest) -> None:
        """Raise `InvalidInput` for what the provider can't honour: never dropped in silence."""
        cls.check_parameters(request.model, request)
        cls.check_turns(request)

    @classmethod
    def check_parameters(cls, model: str, parameters: GenerationParameters) -> None:
        """Do so for how to generate, whatever the input."""
        unsupported = cls.unsupported.union(cls.facts_of(model).unsupported)
        given = {name for name in unsupported if getattr(parameters, name)}
        given |= {name for name in unsupported if getattr(parameters, name) == 0}
        if given:
            raise InvalidInput(
                f"Provider '{cls.name}' does not support {', '.join(sorted(given))}; leave it out."
            )
        cls.check_options(parameters.options)

    @classmethod  # noqa: B027 - many providers take any turns
    def check_turns(cls, request: GenerationRequest) -> None:
        """Do so for the turns of the input."""

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
            error.hide(self.secret)
            self._log_failure("generation", request.model, error, started)
            raise
        response = replace(response, latency_seconds=self._clock() - started)
        logger.info(
            "generation by %s/%s: %s+%s tokens in %.3f s",
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
            _check_vectors(response, len(texts), self.name)
        except ProviderError as error:
            error.hide(self.secret)
            self._log_failure("embedding", model, error, started)
            raise
        response = replace(response, latency_seconds=self._clock() - started)
        logger.info(
            "embedding by %s/%s: %d texts, %s tokens in %.3f s",
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
    def secret(self) -> str:
        """The key, which no error may tell; empty where there is none."""
        return ""

    @property
    def credential(self) -> str:
        """A fingerprint of the key, by which limits are kept; never the key."""
        return "none"

    def estimate_tokens(self, text: str) -> int:
        """A quick estimate without a network: a quarter of the UTF-8 bytes, rounded up.

        It's the rule by which OpenAI counts embedding requests; prose in Latin script has about
        as many, code and other scripts have more.
        """
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    async def count_tokens(self, text: str, model: str) -> "TokenCount":
        """How many tokens `text` is for a model, by the provider's own means where there are any.

        Raises a `ProviderError` where it must be asked and doesn't answer.
        """
        return TokenCount(self.estimate_tokens(text), is_exact=False)

    @abstractmethod
    async def is_available(self) -> bool:
        """Whether the provider answers now. Never raises for an unreachable provider."""

    async def examine(self) -> Examined:
        """Look whether the provider answers and what it can do. Never raises for an error of it."""
        known = self.known_models or {}
        models = tuple(sorted(model for of_kind in known.values() for model in of_kind))
        return Examined(await self.is_available(), tuple(self.default_models), models or None)

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


def fingerprint(api_key: str) -> str:
    """Name a key without telling it: 12 hex digits of its SHA-256."""
    return sha256(api_key.encode(errors="surrogatepass")).hexdigest()[:12] if api_key else "none"


def _check_vectors(answer: EmbeddingResponse, texts: int, provider: str) -> None:
    vectors = answer.vectors
    if vectors.ndim != 2 or vectors.shape[0] != texts or vectors.shape[1] == 0:
        raise BadResponse(
            f"{provider} answered vectors of shape {vectors.shape} for {texts} texts; "
            "nothing was stored."
        )
    if not all(np.isfinite(one).all() for one in (vectors, *answer.others.values())):
        raise BadResponse(f"{provider} answered numbers that are not finite; nothing was stored.")
