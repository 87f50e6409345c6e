"""What all providers on a network have in common: a key, an address, one HTTP client."""

import asyncio
import json
import time
import warnings
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar
from uuid import UUID

import httpx2
from pydantic import JsonValue

from promptstack.config.errors import ConfigurationError
from promptstack.config.network import check_network
from promptstack.config.providers import NamedProvider, Wire
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import Capability, EmbeddingResponse, Examined, LLMResponse
from promptstack.services.llm.base import LLMService, fingerprint
from promptstack.services.llm.errors import (
    InvalidProviderRequest,
    NotConfigured,
    ProviderError,
    TooManyTexts,
)
from promptstack.services.llm.headers import limit_report, request_id
from promptstack.services.llm.http_clients import CONNECT_SECONDS, forget_environment, kept_answers
from promptstack.services.llm.learned import LearnedFacts, ServerLimits
from promptstack.services.llm.packing import EmbeddingInput, EmbeddingLimits
from promptstack.services.llm.reading import Part, Said, credible
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.translation import Read, no_answer, reading, refusal, refused
from promptstack.services.llm.transport import is_heard
from promptstack.services.text import make_storable

AVAILABILITY_SECONDS = 5.0
NO_PATH = (404, 405, 501)
"""The statuses of servers that do not know the path."""
Client = TypeVar("Client")


class RemoteService(LLMService, Generic[Client]):
    """A provider behind an SDK's client, which is made on the first call, on its event loop."""

    official_url: ClassVar[str]
    wire: ClassVar[Wire]
    """Whose API it speaks."""
    key_setting: ClassVar[str]
    """The variable from which the key is read, for error messages."""
    needs_key: ClassVar[bool] = False
    """Whether another address than the provider's own needs a key, too."""
    is_official: ClassVar[bool] = True
    """Whether it is the provider itself and no compatible server: its models are known."""
    reserved_options: ClassVar[frozenset[str]] = frozenset()
    """Options that a parameter sets already, or that would change the form of the answer."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        learned: LearnedFacts | None = None,
        timeout: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(clock=clock)
        self._api_key = (api_key or "").strip()
        self._base_url = base_url
        self._api_version = api_version
        server = f"{self.name}:{fingerprint(base_url or '')}"
        self._learned = ServerLimits(learned or LearnedFacts(), server)
        self._timeout = timeout  # for a whole call, up to the last byte of its answer
        self._client: Client | None = None
        self._is_checked = False

    @classmethod
    def _members(cls, provider: NamedProvider | None) -> dict[str, object]:
        if provider is None:
            return {}
        chosen = {
            Capability.GENERATION: provider.generation_model,
            Capability.EMBEDDING: provider.embedding_model,
        }
        is_official = provider.is_official
        limits = (
            cls.embedding_limits if is_official else replace(cls.embedding_limits, text_bytes=None)
        )
        has_own_name = provider.name == cls.name
        own_key = cls.key_setting if has_own_name else "what api_key_env in MODELS_FILE names"
        return {
            "name": provider.name,
            "key_setting": provider.key_setting or own_key,
            "needs_key": provider.key_setting is not None,
            "is_official": is_official,
            "embedding_limits": limits,
            "default_models": {
                kind: chosen[kind] or (model if is_official else None)
                for kind, model in cls.default_models.items()
            },
        }

    @classmethod
    def check_options(cls, options: Mapping[str, JsonValue]) -> None:
        super().check_options(options)
        reserved = ", ".join(sorted(cls.reserved_options & options.keys()))
        if reserved:
            raise InvalidInput(f"Provider '{cls.name}' doesn't take {reserved} as an option.")

    @property
    def secret(self) -> str:
        return self._api_key

    @property
    def credential(self) -> str:
        return fingerprint(self._api_key)

    async def is_available(self) -> bool:
        return (await self.examine()).answers

    async def examine(self) -> Examined:
        """Ask for the list of models.

        A compatible server may list other models. It is then sent calls without content, which it
        refuses in another way where it knows their path.
        """
        try:
            async with asyncio.timeout(AVAILABILITY_SECONDS):
                models = await self._listed()
                kinds = tuple(self.default_models)
                if not self.is_official:
                    kinds = tuple([kind for kind in kinds if await self._knows(kind, models)])
        except TimeoutError:
            return Examined(False, reason=f"did not answer within {AVAILABILITY_SECONDS:g} s.")
        except ProviderError as error:
            return Examined(False, reason=str(error))
        if not kinds:
            sought = " and no ".join(self.default_models)
            return Examined(False, reason=f"has no {sought} at this address; check base_url.")
        return Examined(True, kinds, models)

    async def _listed(self) -> tuple[str, ...] | None:
        try:
            return tuple(await self._list_models())
        except ProviderError as error:
            if error.status not in {200, 403, *NO_PATH}:
                raise
            return None

    def _reading(self, answer: httpx2.Response) -> AbstractContextManager[Read]:
        return reading(self.name, answer, self.key_setting, self.wire)

    async def _knows(self, kind: Capability, models: Sequence[str] | None) -> bool:
        model = self.default_models[kind]
        if model in (models or ()):
            return True
        try:
            await self._ask_nothing(kind, model or "")
        except ProviderError as error:
            if error.status is None or error.status == 401:
                raise
            return error.status not in NO_PATH or "model" in (error.detail or "").lower()
        return True

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await self._disconnect(client)

    def limits_of(self, model: str) -> EmbeddingLimits:
        """Limits learned from the server take precedence over those that a person has set."""
        return self._learned.within(self.stated_limits(model), model)

    async def embed(
        self,
        texts: Sequence[EmbeddingInput],
        model: str,
        user_id: UUID | None,
        dimensions: int | None = None,
    ) -> EmbeddingResponse:
        """Raise `TooManyTexts` where the provider refuses the number of texts."""
        try:
            answer = await super().embed(texts, model, user_id, dimensions)
        except InvalidProviderRequest as error:
            most = self._learned.refused(error, texts, model)
            if most is None:
                raise
            raise TooManyTexts.instead_of(error, self.name, most) from error
        self._learned.answered(texts, model)
        return answer

    async def _answer(self, call: Awaitable[object]) -> httpx2.Response:
        """Await a call and return the HTTP answer as it came.

        What an SDK parsed from the answer, or raised about its form, is ignored. Raises
        `ProviderError`.
        """
        with kept_answers() as answers:
            try:
                # The client's own timeout restarts with each piece of an answer; this one does not.
                # A stream may take longer, as long as its pieces come.
                async with asyncio.timeout(None if is_heard() else self._timeout):
                    await call
            except Exception as error:
                answer = answers[-1] if answers else None
                if answer is None or answer.has_redirect_location:
                    raise no_answer(self.name, error) from error
                if not answer.is_success:
                    raise refusal(self.name, answer, self.key_setting, self.wire) from error
            if not answers[-1].is_success:  # no SDK has looked at it
                raise refusal(self.name, answers[-1], self.key_setting, self.wire)
            return answers[-1]

    def _response(
        self, answer: httpx2.Response, request: GenerationRequest, read: Callable[[Part], Said]
    ) -> LLMResponse:
        """Read an answer into a form that can be stored.

        Raises `ContentRefused`, and `BadResponse` where the answer is empty.
        """
        with self._reading(answer) as found:
            said, notes = read(found.body), found.body.notes
            found.usage = usage = credible(said.usage, said.text or "", notes)
            text = said.text
            if text is None and request.json_schema is not None and isinstance(said.value, dict):
                text = json.dumps(said.value, ensure_ascii=False)
            if not text and not said.tool_calls:
                if said.refusal is not None:
                    raise refused(self.name, said.refusal, answer, usage, notes)
                if text is None or found.body.get("error"):
                    raise ValueError("there is no text and no call in it")
            storable = make_storable(text or "")
            if storable != (text or ""):
                notes.add("some of its characters can't be stored")
            return LLMResponse(
                text=storable,
                model=said.model or request.model,
                finish_reason=said.finish_reason or "unknown",
                provider_request_id=said.request_id or request_id(answer.headers),
                tool_calls=said.tool_calls,
                limits=limit_report(answer.headers),
                note=str(notes),
                **vars(usage),
            )

    def _check_again(self, request: GenerationRequest) -> None:
        """Repeat the checks of enqueueing: the job may come from an older version."""
        try:
            self.check_request(request)
        except InvalidInput as error:
            raise InvalidProviderRequest(str(error)) from error

    def check_configured(self) -> None:
        if self._is_checked:
            return
        if not self._api_key and (self.needs_key or not self._base_url):
            raise NotConfigured(
                f"{self.name} needs an API key, which is read from {self.key_setting}."
            )
        if not (self._api_key.isascii() and self._api_key.isprintable()):
            raise NotConfigured(f"{self.key_setting} has characters that no key has.")
        try:
            check_network(self.wire, self._base_url)
        except ConfigurationError as error:
            raise NotConfigured(str(error)) from error
        self._is_checked = True  # it reads all certificates, and every job asks for it

    def _connected(self) -> Client:
        if self._client is None:
            self.check_configured()
            # aiohttp warns about bodies over 1 MiB, which only cost a copy to the socket.
            warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
            # Without a key or a URL, an SDK takes the environment's: it would send our key there.
            self._client = self._connect(
                self._api_key or "none",
                self._base_url or self.official_url,
                httpx2.Timeout(self._timeout, connect=CONNECT_SECONDS),
            )
            if self.name != self.wire:
                forget_environment(self._client)
        return self._client

    @abstractmethod
    def _connect(self, api_key: str, base_url: str, timeout: httpx2.Timeout) -> Client:
        """Make the client. It connects on the first call."""

    @abstractmethod
    async def _disconnect(self, client: Client) -> None:
        """Close the client."""

    @abstractmethod
    async def _list_models(self) -> list[str]:
        """Ask for the names of models. Raises `ProviderError`."""

    @abstractmethod
    async def _ask_nothing(self, kind: Capability, model: str) -> None:
        """Make a call without content, which is refused and not billed. Raises `ProviderError`."""
