"""What the services of providers across a network have in common: a key, an address, one client."""

import asyncio
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

import httpx2
from pydantic import JsonValue

from config.providers import NamedProvider
from services.errors import InvalidInput
from services.llm.base import Capability, LLMService, fingerprint
from services.llm.errors import AuthenticationFailed, InvalidProviderRequest, ProviderError
from services.llm.requests import GenerationRequest

AVAILABILITY_SECONDS = 5.0
CONNECT_SECONDS = 10.0
# The aiohttp transport keeps every connection up to `max_connections` alive and ignores
# `max_keepalive_connections`; httpx2's own heeds both. Idle ones are dropped just before uvicorn,
# which serves most compatible APIs, drops them after 5 s: a POST that meets a closing connection
# is lost.
CONNECTIONS = httpx2.Limits(
    max_connections=1_000, max_keepalive_connections=1_000, keepalive_expiry=4.0
)

Client = TypeVar("Client")


class RemoteService(LLMService, Generic[Client]):
    """A provider behind an SDK's client.

    One client with one connection pool, made on the first call and bound to the event loop of
    that call.
    """

    official_url: ClassVar[str]
    key_setting: ClassVar[str]
    """The variable that the key is read from, for error messages."""
    needs_key: ClassVar[bool] = False
    """Whether no call is made without a key, also to another address than the provider's own."""
    is_official: ClassVar[bool] = True
    """Whether it is the provider itself, whose models are known."""
    reserved_options: ClassVar[frozenset[str]] = frozenset()
    """What has a field of its own, or changes the answer's form."""

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        api_version: str | None = None,
        timeout: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(clock=clock)
        self._api_key = (api_key or "").strip()
        self._base_url = base_url
        self._api_version = api_version
        self._timeout = timeout
        """Seconds for a whole call, to the last byte of its answer."""
        self._client: Client | None = None

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
        return {
            "name": provider.name,
            "key_setting": provider.key_setting or cls.key_setting,
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
        """See `LLMService`; what is reserved is refused where all else is passed on."""
        super().check_options(options)
        reserved = ", ".join(sorted(cls.reserved_options & options.keys()))
        if reserved:
            raise InvalidInput(f"Provider '{cls.name}' doesn't take {reserved} as an option.")

    @property
    def secret(self) -> str:
        """See `LLMService`."""
        return self._api_key

    @property
    def credential(self) -> str:
        """See `LLMService`."""
        return fingerprint(self._api_key)

    async def is_available(self) -> bool:
        """Whether the list of models is answered within a few seconds."""
        try:
            async with asyncio.timeout(AVAILABILITY_SECONDS):
                await self._list_models()
        except (ProviderError, TimeoutError):
            return False
        return True

    async def aclose(self) -> None:
        """Close the pooled connections. A later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await self._disconnect(client)

    def _check_again(self, request: GenerationRequest) -> None:
        """Refuse what enqueueing would have refused: a job may be older than this version."""
        try:
            self.check_request(request)
        except InvalidInput as error:
            raise InvalidProviderRequest(str(error)) from error

    def _connected(self) -> Client:
        if self._client is None:
            if not self._api_key and (self.needs_key or not self._base_url):
                raise AuthenticationFailed(f"{self.name} needs an API key; set {self.key_setting}.")
            if not (self._api_key.isascii() and self._api_key.isprintable()):
                raise AuthenticationFailed(f"{self.key_setting} has characters that no key has.")
            # aiohttp warns of bodies over 1 MiB, but all they cost is a copy to the socket.
            warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
            # Without a placeholder an SDK would send the environment's key, and without a URL it
            # would send ours to the environment's address.
            self._client = self._connect(
                self._api_key or "none",
                self._base_url or self.official_url,
                httpx2.Timeout(self._timeout, connect=CONNECT_SECONDS),
            )
        return self._client

    @abstractmethod
    def _connect(self, api_key: str, base_url: str, timeout: httpx2.Timeout) -> Client:
        """Make the client. It opens nothing until the first call."""

    @abstractmethod
    async def _disconnect(self, client: Client) -> None:
        """Close the client."""

    @abstractmethod
    async def _list_models(self) -> None:
        """Ask for the list of models. Raises `ProviderError`."""
