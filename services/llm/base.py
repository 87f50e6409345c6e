"""The interface of all providers."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Any, ClassVar, Self
from uuid import UUID

from pydantic import JsonValue

from promptstack.config.providers import ModelFacts, NamedProvider
from promptstack.services.errors import InputTooLong, InvalidInput, UnknownModel
from promptstack.services.llm.answers import (
    BYTES_PER_TOKEN,
    Capability,
    EmbeddingResponse,
    Examined,
    LLMResponse,
    TokenCount,
)
from promptstack.services.llm.errors import InvalidProviderRequest, ProviderError
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.packing import (
    SUPPOSED_DIMENSIONS,
    EmbeddingInput,
    EmbeddingLimits,
    bytes_of,
)
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.vectors import check_size, check_vectors
from promptstack.services.text import check_name

logger = logging.getLogger(__name__)

MAX_MODEL_CHARACTERS = 200


class LLMService(ABC):
    """A provider of generations, embeddings or both.

    Subclasses implement `_generate` and `_embed` and translate their SDK's errors. The public
    calls time them, check what came back and log the outcome without any content.
    """

    name: ClassVar[str]
    """The provider's name in jobs and settings."""

    default_models: ClassVar[Mapping[Capability, str | None]] = {}
    """The model for a caller that names none; None where one must be named. A capability that is
    missing here isn't offered."""

    known_models: ClassVar[Mapping[Capability, frozenset[str]] | None] = None
    """The models that exist, or None where only the provider itself knows."""

    unsupported: ClassVar[frozenset[str]] = frozenset()
    """The fields of a `GenerationRequest` that it does not support."""

    known_options: ClassVar[frozenset[str] | None] = frozenset()
    """The options that it accepts, or None where it passes all on."""

    is_limited: ClassVar[bool] = True
    """Whether rate limits apply. They don't to a provider that runs inside this process."""

    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(items=256, bytes=1_000_000)

    takes_dimensions: ClassVar[bool] = False
    """Whether the size of vectors can be asked for."""

    takes_token_ids: ClassVar[bool] = False
    """Whether token ids can be embedded in place of texts."""

    facts: ClassVar[Sequence[ModelFacts]] = ()
    """What MODELS_FILE says about its models; the first that matches holds."""

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._dimensions: dict[str, int] = {}

    def check_configured(self) -> None:  # noqa: B027 - for most there is nothing to check
        """Raise `NotConfigured` where no call can be sent, before one is recorded and counted."""

    @classmethod
    def configured(cls, provider: NamedProvider | None, facts: Sequence[ModelFacts]) -> type[Self]:
        """The class as a person has set it up in MODELS_FILE: another name, other `facts`."""
        return type(cls.__name__, (cls,), {"facts": tuple(facts), **cls._members(provider)})

    @classmethod
    def _members(cls, provider: NamedProvider | None) -> dict[str, object]:
        """The class attributes that differ for a server that a person has named."""
        return {}

    @classmethod
    def facts_of(cls, model: str) -> ModelFacts:
        """What MODELS_FILE says about a model."""
        found = (facts for facts in cls.facts if fnmatchcase(model, facts.model))
        return next(found, None) or ModelFacts(provider=cls.name)

    @classmethod
    def stated_limits(cls, model: str) -> EmbeddingLimits:
        """What one embedding request to a model may hold, by what is known before any call."""
        limits, facts = cls.embedding_limits, cls.facts_of(model)
        return replace(
            limits,
            items=facts.texts_per_call or limits.items,
            tokens=facts.tokens_per_call or limits.tokens,
            text_tokens=facts.tokens_per_text or limits.text_tokens,
        )

    def limits_of(self, model: str) -> EmbeddingLimits:
        """What one embedding request to a model may hold, by what is known now."""
        return self.stated_limits(model)

    def dimensions_of(self, model: str) -> int:
        """The size of a model's last vectors; before any have come, a size that few exceed."""
        return self._dimensions.get(model, SUPPOSED_DIMENSIONS)

    @classmethod
    def choose_model(cls, capability: Capability, model: str | None) -> str:
        """Return the model to use: the provider's default where `model` is None.

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
        """Raise `InvalidInput` for options that the provider does not know."""
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
        """The options that come from fields of an OpenAI request. Raises `InvalidInput`.

        The option `api` is dropped: it chooses OpenAI's endpoint, and other wires have one only.
        """
        other = sorted(options.keys() - {"api"})
        if other:
            raise InvalidInput(
                f"Provider '{cls.name}' does not know {', '.join(other)[:200]} of a request to "
                "OpenAI; leave it out.",
                pointer=f"/{other[0]}",
            )
        return {}

    @classmethod
    def check_request(cls, request: GenerationRequest) -> None:
        """Raise `InvalidInput` for what the provider does not support: nothing is dropped."""
        cls.check_parameters(request.model, request)
        cls.check_turns(request)

    @classmethod
    def check_parameters(cls, model: str, parameters: GenerationParameters) -> None:
        """Check the parameters of a generation, which do not depend on its input."""
        unsupported = cls.unsupported.union(cls.facts_of(model).unsupported)
        values = {name: getattr(parameters, name) for name in unsupported}
        given = {name for name, value in values.items() if value or value == 0}
        if given:
            raise InvalidInput(
                f"Provider '{cls.name}' does not support {', '.join(sorted(given))}; leave it out."
            )
        cls.check_options(parameters.options)

    @classmethod  # noqa: B027 - many providers take any turns
    def check_turns(cls, request: GenerationRequest) -> None:
        """Check the turns of the input."""

    @classmethod
    def check_embedding(
        cls, model: str, inputs: Sequence[EmbeddingInput] = (), dimensions: int | None = None
    ) -> None:
        """Raise `InvalidInput` for inputs or a size of vectors that no call could have."""
        if dimensions is not None and not cls.takes_dimensions:
            raise InvalidInput(
                f"The size of vectors can't be chosen at provider '{cls.name}'; leave out "
                "dimensions.",
                pointer="/dimensions",
            )
        limits = cls.stated_limits(model)
        for place, given in enumerate(inputs):
            if isinstance(given, str):
                if limits.text_bytes is not None and bytes_of(given) > limits.text_bytes:
                    raise InputTooLong(
                        f"input[{place}] has {bytes_of(given):,} bytes, which is certainly more "
                        f"than {model} takes. Cut it into smaller texts.",
                        pointer="/input",
                    )
            elif not cls.takes_token_ids:
                raise InvalidInput(
                    f"Provider '{cls.name}' embeds texts, and can't read token ids: send texts. In "
                    "langchain-openai, this is OpenAIEmbeddings(check_embedding_ctx_length=False).",
                    pointer="/input",
                )

    async def generate_text(
        self,
        request: GenerationRequest,
        user_id: UUID | None,
        *,
        failures: int = 0,
        listener: Listener | None = None,
    ) -> LLMResponse:
        """Ask for one generation. A `listener` hears its text while it comes.

        `failures` counts the failures of this job so far; only the demo provider uses it.
        Raises a `ProviderError` subclass; any other exception is a bug in the service.
        """
        started = self._clock()
        try:
            if listener is None:
                response = await self._generate(request, user_id, failures)
            else:
                listener.begin()
                response = await self._stream(request, user_id, failures, listener)
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
        self,
        texts: Sequence[EmbeddingInput],
        model: str,
        user_id: UUID | None,
        dimensions: int | None = None,
    ) -> EmbeddingResponse:
        """Ask for one vector per text, as float32 of shape (len(texts), dimensions).

        Raises a `ProviderError` subclass. A wrong count, a wrong shape or a number that isn't
        finite is a `BadResponse`: such vectors are never returned. What `check_embedding` refuses
        may not be asked for.
        """
        started = self._clock()
        try:
            response = await self._embed(texts, model, user_id, dimensions)
            check_vectors(response, len(texts), self.name)
            if dimensions is None:
                self._dimensions[model] = response.vectors.shape[1]
            else:
                check_size(response, dimensions, self.name)
        except ProviderError as error:
            error.hide(self.secret)
            self._log_failure("embedding", model, error, started)
            raise
        response = replace(response, latency_seconds=self._clock() - started)
        logger.info(
            "embedding by %s/%s: %d texts, %s tokens in %.3f s",
            *(self.name, response.model, len(texts)),
            *(response.input_tokens, response.latency_seconds),
        )
        return response

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        raise InvalidProviderRequest(f"Provider '{self.name}' offers no generation models.")

    async def _stream(
        self, request: GenerationRequest, user_id: UUID | None, failures: int, listener: Listener
    ) -> LLMResponse:
        """Ask as `_generate` does. A provider without streams says its text at once, at the end."""
        response = await self._generate(request, user_id, failures)
        listener.hear(response.text)
        return response

    async def _embed(
        self,
        texts: Sequence[Any],
        model: str,
        user_id: UUID | None,
        dimensions: int | None,
    ) -> EmbeddingResponse:
        raise InvalidProviderRequest(f"Provider '{self.name}' offers no embedding models.")

    @property
    def secret(self) -> str:
        """The API key, which no error may contain; empty where there is none."""
        return ""

    @property
    def credential(self) -> str:
        """A fingerprint of the key, never the key. Limits are kept per credential."""
        return "none"

    def estimate_tokens(self, text: str) -> int:
        """A quick estimate without a network: a quarter of the UTF-8 bytes, rounded up.

        OpenAI counts embedding requests by this rule. Prose in Latin script has about as many
        tokens; code and other scripts have more.
        """
        return -(-len(text.encode()) // BYTES_PER_TOKEN)

    def estimate_inputs(self, inputs: Sequence[EmbeddingInput]) -> list[int]:
        """The same of each text; of token ids, how many there are."""
        return [
            self.estimate_tokens(given) if isinstance(given, str) else len(given)
            for given in inputs
        ]

    async def count_tokens(self, text: str, model: str) -> TokenCount:
        """Count the tokens of `text` for a model, by the provider's own count where it has one.

        Raises a `ProviderError` where the provider must be asked and does not answer.
        """
        return TokenCount(self.estimate_tokens(text), is_exact=False)

    @abstractmethod
    async def is_available(self) -> bool:
        """Whether the provider answers now. Never raises for an unreachable provider."""

    async def examine(self) -> Examined:
        """Find out whether the provider answers and what it offers. Never raises its errors."""
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
    """Identify a key without revealing it: 12 hex digits of its SHA-256."""
    return sha256(api_key.encode(errors="surrogatepass")).hexdigest()[:12] if api_key else "none"
