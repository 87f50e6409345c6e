"""Which providers exist, and how to make one."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any

from promptstack.config.providers import ModelFacts, NamedProvider
from promptstack.services.errors import InvalidInput, UnknownProvider
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.request_bodies import HINTS
from promptstack.services.llm.requests import Fallback
from promptstack.services.text import check_name

OFFERED_SECONDS = 1.0
"""So long it is believed that a worker can ask a provider."""
ENTRY_POINT_GROUP = "promptstack.providers"


class LLMServiceFactory:
    """Makes provider services by name.

    All providers are entry points of the group `promptstack.providers`, built-in or not. A server
    that a person has named uses the class of the provider whose API it speaks. Classes are
    imported when they are first needed: an SDK takes up to a second.
    """

    def __init__(
        self,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        providers: Sequence[NamedProvider] = (),
        facts: Sequence[ModelFacts] = (),
        none_can_ask: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Take the `options` of each provider's service.

        `none_can_ask` tells whether no worker has what a provider needs.
        """
        self._none_can_ask = none_can_ask
        self._options = dict(options or {})
        self._providers = {provider.name: provider for provider in providers}
        self._facts = facts
        self._classes: dict[str, type[LLMService]] = {}
        self._offered_until: dict[str, float] = {}
        self._entry_points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}

    def register(self, name: str, service_class: type[LLMService]) -> None:
        """Add a provider, or replace its class."""
        self._classes[name] = service_class

    def names(self) -> list[str]:
        """The names of all providers."""
        return sorted({*self._classes, *self._entry_points, *self._providers})

    def service_class(self, provider: str) -> type[LLMService]:
        """Return the provider's class without making a client. Raises `UnknownProvider`."""
        check_name(provider, "The provider's name")
        if provider not in self._classes:
            named = self._providers.get(provider)
            point = self._entry_points.get(named.wire if named else provider)
            if point is None:
                raise UnknownProvider(
                    f"There is no provider {provider[:80]!r}. Known: {', '.join(self.names())}."
                )
            facts = [facts for facts in self._facts if facts.provider == provider]
            loaded: type[LLMService] = point.load()
            self._classes[provider] = loaded.configured(named, facts) if named or facts else loaded
        return self._classes[provider]

    def is_set_up(self, provider: str) -> bool:
        """Whether this process has what a provider needs: a key, or the address of a server."""
        options, named = self._options.get(provider), self._providers.get(provider)
        if options is None or options.get("api_key"):
            return True
        return bool(options.get("base_url")) and not (named and named.key_setting)

    def offered(self, provider: str) -> type[LLMService]:
        """Return the class of a provider for new work. Raises `InvalidInput`.

        It is also raised where no worker has the key. The caller itself needs no key.
        """
        service = self.service_class(provider)
        if not self.is_offered(provider):
            raise InvalidInput(
                f"{provider} needs an API key, and no worker has one. It is read from "
                f"{getattr(service, 'key_setting', 'its setting')} where the workers run: put it "
                "there, and start them again."
            )
        return service

    def is_offered(self, provider: str) -> bool:
        """Whether this process or a worker has what a provider needs."""
        if self.is_set_up(provider):
            return True
        now = time.monotonic()
        # Workers are asked for once a moment, not for each job.
        if self._offered_until.get(provider, 0.0) > now:
            return True
        if self._none_can_ask(provider):
            return False
        self._offered_until[provider] = now + OFFERED_SECONDS
        return True

    def openai_options(self, provider: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a request to OpenAI, for a provider. Raises `InvalidInput`.

        Those that change no answer are left out where the provider doesn't know them.
        """
        service = self.service_class(provider)
        try:
            return service.take_openai_options(options)
        except InvalidInput:
            return service.take_openai_options(
                {name: value for name, value in options.items() if name not in HINTS}
            )

    def fallbacks_for(
        self, fallbacks: Sequence[Fallback], options: Mapping[str, Any]
    ) -> tuple[Fallback, ...]:
        """The fallbacks that can obey the options of a request to OpenAI, each with them.

        Another one would answer something else than what was asked for.
        """
        found = []
        for one in fallbacks:
            with suppress(InvalidInput):
                theirs = self.openai_options(one.provider, options)
                found.append(one.model_copy(update={"options": theirs}))
        return tuple(found)

    def create(self, provider: str, **kwargs: Any) -> LLMService:
        """Make the provider's service with its configured options, overridden by `kwargs`."""
        service_class = self.service_class(provider)
        return service_class(**{**self._options.get(provider, {}), **kwargs})
