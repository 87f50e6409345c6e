"""The names of models that clients of the OpenAI and Anthropic doors send, and whom they mean."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, TypeVar

from promptstack.config.models_file import (
    AliasFallback,
    ModelAlias,
    ModelLimits,
    ModelPrice,
    ModelsFile,
)
from promptstack.config.providers import ModelFacts, NamedProvider
from promptstack.services.errors import UnknownModel
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import OFFERED_SECONDS, LLMServiceFactory
from promptstack.services.llm.requests import Fallback

PATTERN = frozenset("*?[")
Target = TypeVar("Target", bound=AliasFallback)


class Allowance(Protocol):
    """Whom an API key may ask."""

    def allows(self, provider: str, model: str) -> bool:
        """Whether it may ask this model."""


@dataclass(frozen=True)
class ResolvedModel:
    """Whom a name means."""

    provider: str
    model: str
    fallbacks: tuple[Fallback, ...] = ()
    """Of generations only: vectors of another model can't be compared."""


@dataclass(frozen=True)
class ListedModel:
    """A name as lists of models show it."""

    id: str
    owned_by: str
    """The provider."""
    created: int = 0
    """When it was made, in seconds since 1970. Nobody tells us, and clients need a number."""


class ModelNames:
    """Finds the provider and the model that a name means.

    A name is an alias of MODELS_FILE, a model that a provider is known to have, or
    `provider/model`.
    """

    def __init__(
        self,
        factory: LLMServiceFactory,
        models_file: ModelsFile,
        servers: Sequence[NamedProvider],
        default_providers: Mapping[Capability, str],
        *,
        maker_of: Callable[[str], str | None],
        random: Random | None = None,
    ) -> None:
        """`maker_of` tells whose model has a name, by the providers' names in genai-prices."""
        self._factory = factory
        self._aliases = {alias.name: alias for alias in models_file.aliases}
        self._made_by = {server.name: server.priced_as for server in servers}
        self._defaults = default_providers
        self._maker_of = maker_of
        self._random = random or Random()  # noqa: S311 - it spreads load, and guards nothing
        self._offered: tuple[float, list[str]] = (0.0, [])
        self._named: dict[str, list[str]] = {}
        entries: list[ModelFacts | ModelLimits | ModelPrice] = [
            *models_file.models,
            *models_file.limits,
            *models_file.prices,
        ]
        for entry in entries:
            if not PATTERN & set(entry.model):
                self._named.setdefault(entry.provider, []).append(entry.model)

    def resolve(
        self,
        name: str,
        kind: Capability,
        *,
        key_limits: Allowance | None = None,
        same_for: str | None = None,
    ) -> ResolvedModel:
        """Return whom a name means. Raises `UnknownModel`, and `InvalidInput` for a missing key.

        With the same `same_for`, an alias means the same target each time: a request that is sent
        again must stay the same request.
        """
        alias = self._aliases.get(name)
        if alias is not None:
            targets = self._usable(alias.targets, kind, key_limits)
            if targets:
                random = self._random if same_for is None else Random(f"{name} {same_for}")  # noqa: S311
                # One that stands there twice counts twice.
                usable = [one for one in alias.targets if one in targets]
                [target] = random.choices(usable, [one.weight for one in usable])
                return self._with_fallbacks(alias, *targets[target], kind, key_limits)
        else:
            for provider, model in self._knowing(name, kind):
                if key_limits is None or key_limits.allows(provider, model):
                    return ResolvedModel(provider, self._chosen(provider, kind, model))
        raise UnknownModel(
            f"The model {name[:200]!r} does not exist, or you may not use it. GET /models lists "
            "names; `provider/model` names any model of a provider.",
            pointer="/model",
        )

    def listed(self, key_limits: Allowance | None = None) -> list[ListedModel]:
        """The names that are known here: aliases first, then the models of each provider."""
        found: dict[str, ListedModel] = {}
        for alias in self._aliases.values():
            for kind in Capability:
                for provider, _ in self._usable(alias.targets, kind, key_limits).values():
                    found.setdefault(alias.name, ListedModel(alias.name, provider))
        for provider in self._offered_ones():
            for kind in Capability:
                for model in self._models_of(provider, kind):
                    if key_limits is None or key_limits.allows(provider, model):
                        found.setdefault(model, ListedModel(model, provider))
        return list(found.values())

    def find(self, name: str, key_limits: Allowance | None = None) -> ListedModel:
        """A name as it is listed, or may be used all the same. Raises `UnknownModel`."""
        for listed in self.listed(key_limits):
            if listed.id == name:
                return listed
        try:
            meant = self.resolve(name, Capability.GENERATION, key_limits=key_limits)
        except UnknownModel:
            meant = self.resolve(name, Capability.EMBEDDING, key_limits=key_limits)
        return ListedModel(name, meant.provider)

    def _with_fallbacks(
        self,
        alias: ModelAlias,
        provider: str,
        model: str,
        kind: Capability,
        key_limits: Allowance | None,
    ) -> ResolvedModel:
        if kind is not Capability.GENERATION:
            return ResolvedModel(provider, model)
        others = self._usable(alias.fallbacks, kind, key_limits).values()
        return ResolvedModel(
            provider, model, tuple(Fallback(provider=one, model=its) for one, its in others)
        )

    def _usable(
        self,
        targets: Iterable[Target],
        kind: Capability,
        key_limits: Allowance | None,
    ) -> dict[Target, tuple[str, str]]:
        """The targets that can be asked, each with its provider and model."""
        offered = self._offered_ones()
        found = {}
        for one in targets:
            if one.provider not in offered:
                continue
            try:
                model = self._chosen(one.provider, kind, one.model)
            except UnknownModel:
                continue
            if key_limits is None or key_limits.allows(one.provider, model):
                found[one] = (one.provider, model)
        return found

    def _knowing(self, name: str, kind: Capability) -> list[tuple[str, str]]:
        """The providers that know a name, and the model that it is there; the best one first."""
        providers = [one for one in self._offered_ones() if self._makes(one, kind)]
        # Who takes what names no provider takes what several know.
        providers.sort(key=lambda one: one != self._defaults[kind])
        if knowing := [one for one in providers if name in self._models_of(one, kind)]:
            return [(one, name) for one in knowing]
        provider, _, model = name.partition("/")
        if model and provider in self._factory.names():
            self._factory.offered(provider)
            return [(provider, model)]
        if maker := self._maker_of(name):
            makers = [one for one, made_by in self._made_by.items() if made_by == maker]
            if knowing := [one for one in providers if one in makers]:
                return [(one, name) for one in knowing]
        open_ones = [one for one in providers if self._service_knows_any(one)]
        return [(one, name) for one in open_ones] if len(open_ones) == 1 else []

    def _chosen(self, provider: str, kind: Capability, model: str | None) -> str:
        return self._factory.service_class(provider).choose_model(kind, model)

    def _makes(self, provider: str, kind: Capability) -> bool:
        return kind in self._factory.service_class(provider).default_models

    def _service_knows_any(self, provider: str) -> bool:
        """Whether only the provider itself knows its models."""
        return self._factory.service_class(provider).known_models is None

    def _models_of(self, provider: str, kind: Capability) -> list[str]:
        """The models that a provider is known to have."""
        service = self._factory.service_class(provider)
        if kind not in service.default_models:
            return []
        if service.known_models is not None:
            return sorted(service.known_models[kind])
        default = service.default_models[kind]
        return [*([default] if default else []), *self._named.get(provider, ())]

    def _offered_ones(self) -> list[str]:
        """The providers that this process or a worker has a key for; found once a moment."""
        until, offered = self._offered
        if time.monotonic() > until:
            offered = [one for one in self._factory.names() if self._factory.is_offered(one)]
            self._offered = (time.monotonic() + OFFERED_SECONDS, offered)
        return offered
