"""What the services of providers across a network have in common: a key, an address, one client."""

import asyncio
import json
import time
import warnings
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

import aiohttp
import httpx2
from pydantic import JsonValue

from promptstack.config.errors import ConfigurationError
from promptstack.config.network import check_network
from promptstack.config.providers import NamedProvider, Wire
from promptstack.config.settings import MIN_CHUNK_TOKENS
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.base import (
    Capability,
    EmbeddingLimits,
    EmbeddingResponse,
    Examined,
    LLMResponse,
    LLMService,
    fingerprint,
)
from promptstack.services.llm.errors import (
    ContextTooLong,
    InvalidProviderRequest,
    ModelNotFound,
    NotConfigured,
    ProviderError,
    TooManyTexts,
)
from promptstack.services.llm.headers import limit_report, request_id
from promptstack.services.llm.learned import LearnedFacts, RefusedCalls, most_texts
from promptstack.services.llm.reading import Part, Said, credible
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.llm.translation import reading, refusal, refused
from promptstack.services.text import make_storable

AVAILABILITY_SECONDS = 5.0
CONNECT_SECONDS = 10.0
OWN_HEADERS = ("anthropic-version",)
"""Those that we give a client ourselves."""
NO_PATH = (404, 405, 501)
"""How servers say that they have no such thing."""
# The aiohttp transport keeps every connection up to `max_connections` alive and ignores
# `max_keepalive_connections`; httpx2's own heeds both. Idle ones are dropped just before uvicorn,
# which serves most compatible APIs, drops them after 5 s: a POST that meets a closing connection
# is lost.
CONNECTIONS = httpx2.Limits(
    max_connections=1_000, max_keepalive_connections=1_000, keepalive_expiry=4.0
)

LONGEST_HEADER = 131_072
"""Bytes of a header. By default aiohttp refuses answers with one over 8 KB, as proxies send."""
MOST_HEADERS = 1_000

Client = TypeVar("Client")
_ANSWERS: ContextVar[list[httpx2.Response]] = ContextVar("answers")
"""What has come to the call that is under way, in its task."""


class RemoteService(LLMService, Generic[Client]):
    """A provider behind an SDK's client.

    One client with one connection pool, made on the first call and bound to the event loop of
    that call.
    """

    official_url: ClassVar[str]
    wire: ClassVar[Wire]
    """Whose API it speaks."""
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
        learned: LearnedFacts | None = None,
        timeout: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(clock=clock)
        self._api_key = (api_key or "").strip()
        self._base_url = base_url
        self._api_version = api_version
        self._learned = learned or LearnedFacts()
        self._server = f"{self.name}:{fingerprint(base_url or '')}"
        self._refused: dict[str, RefusedCalls] = {}
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
        own_key = "what api_key_env in MODELS_FILE names"
        if provider.name == cls.name:
            own_key = cls.key_setting
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
        """Refuse the reserved options. All others are passed on."""
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
        """Whether it answers within a few seconds."""
        return (await self.examine()).answers

    async def examine(self) -> Examined:
        """Ask for the list of models.

        Where another server than the provider's own doesn't list our models, calls without
        content are made: it refuses them where it knows their path.
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

    def _names_in(self, answer: httpx2.Response) -> list[str]:
        with reading(self.name, answer, self.key_setting, self.wire) as found:
            return [str(model.get("id")) for model in found.body.parts("data") if model.get("id")]

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
        """Close the pooled connections. A later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await self._disconnect(client)

    def limits_of(self, model: str) -> EmbeddingLimits:
        """Limits that the server has named go before those that a person has set."""
        stated, learned = self.stated_limits(model), self._learned.of(self._server, model)
        texts, tokens = learned.get("texts_per_call"), learned.get("tokens_per_text")
        return replace(
            stated,
            items=min(stated.items, int(texts or stated.items)),
            text_tokens=int(tokens) if tokens else stated.text_tokens,
        )

    async def embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        """Raise `TooManyTexts` where the refusal is about the number of texts."""
        try:
            answer = await super().embed(texts, model, user_id)
        except InvalidProviderRequest as error:
            most = self._learn_of_refusal(error, texts, model)
            if most is not None:
                too_many = TooManyTexts(
                    f"{self.name} takes at most {most} texts in one call (status {error.status}).",
                    detail=error.detail,
                    status=error.status,
                    request_id=error.request_id,
                    limits=error.limits,
                )
                too_many.most = most
                raise too_many from error
            raise
        if model in self._refused and (most := self._refused[model].answered(texts)) is not None:
            self._learn(model, "texts_per_call", most)
        return answer

    def _learn_of_refusal(
        self, error: ProviderError, texts: Sequence[str], model: str
    ) -> int | None:
        """How many texts the server takes in one call, where it refused them for their number."""
        limit = error.limit if isinstance(error, ContextTooLong) and error.given else None
        # Fewer than in any chunk are no model's limit: a refusal may quote the text.
        if len(texts) == 1 and limit and limit >= MIN_CHUNK_TOKENS:
            self._learn(model, "tokens_per_text", limit)
        if len(texts) == 1 or isinstance(error, ModelNotFound):
            return None
        most = most_texts(error.detail or "", len(texts))
        if most is not None:
            self._learn(model, "texts_per_call", most)
        elif error.status == 413 or not isinstance(error, ContextTooLong):
            self._refused.setdefault(model, RefusedCalls()).refused(texts)
        return most

    def _learn(self, model: str, fact: str, value: str | int) -> None:
        """Keep a fact, and share it in the background.

        To wait for that could lose a paid answer: the call may be cancelled meanwhile.
        """
        if self._learned.learn(self._server, model, fact, value):
            share = partial(self._learned.share, self._server, model, fact, value)
            asyncio.get_running_loop().run_in_executor(None, share)

    async def _facts_now(self, model: str) -> Mapping[str, str]:
        """What was learned of a model; others' part of it is read away from the event loop."""
        if self._learned.is_stale(self._server, model):
            return await asyncio.to_thread(self._learned.of, self._server, model)
        return self._learned.of(self._server, model)

    async def _answer(self, call: Awaitable[object]) -> httpx2.Response:
        """Await a call of the SDK, whose client keeps answers; the answer as it came.

        What the SDK made of it, or raised over its form, is not looked at. Raises `ProviderError`.
        """
        answers: list[httpx2.Response] = []
        _ANSWERS.set(answers)
        try:
            # The client's own timeout starts again with each piece of an answer; this one doesn't.
            async with asyncio.timeout(self._timeout):
                await call
        except Exception as error:
            answer = answers[-1] if answers else None
            if answer is None or answer.has_redirect_location:
                raise self._no_answer(error) from error
            if not answer.is_success:
                raise refusal(self.name, answer, self.key_setting, self.wire) from error
        return answers[-1]

    @abstractmethod
    def _no_answer(self, error: Exception) -> ProviderError:
        """Say what it means that the SDK or its transport has no answer."""

    def _response(
        self, answer: httpx2.Response, request: GenerationRequest, read: Callable[[Part], Said]
    ) -> LLMResponse:
        """What an answer says, in a form that can be stored.

        Raises `ContentRefused`, and `BadResponse` where there is nothing in it.
        """
        with reading(self.name, answer, self.key_setting, self.wire) as found:
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
        """Refuse what enqueueing would have refused: a job may be older than this version."""
        try:
            self.check_request(request)
        except InvalidInput as error:
            raise InvalidProviderRequest(str(error)) from error

    def check_configured(self) -> None:
        if self._client is not None:
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

    def _connected(self) -> Client:
        if self._client is None:
            self.check_configured()
            # aiohttp warns of bodies over 1 MiB, but all they cost is a copy to the socket.
            warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
            # Without a placeholder an SDK would send the environment's key, and without a URL it
            # would send ours to the environment's address.
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
        """Make the client. It opens nothing until the first call."""

    @abstractmethod
    async def _disconnect(self, client: Client) -> None:
        """Close the client."""

    @abstractmethod
    async def _list_models(self) -> list[str]:
        """Ask for the names of models. Raises `ProviderError`."""

    @abstractmethod
    async def _ask_nothing(self, kind: Capability, model: str) -> None:
        """Make a call without content, which nobody answers or bills. Raises `ProviderError`."""


async def keep(answer: httpx2.Response) -> None:
    """Keep an answer as it came, for whoever waits for it: a hook of an SDK's client."""
    await answer.aread()
    answers = _ANSWERS.get(None)
    if answers is not None:
        answers.append(answer)


def forget_environment(client: Any) -> None:
    """Let an SDK's client send nothing that the environment names for the provider itself.

    Its organisation and its headers, which may hold a key, are no other server's business.
    """
    if hasattr(client, "organization"):
        client.organization = client.project = None
    given = getattr(client, "_custom_headers", {})
    client._custom_headers = {name: given[name] for name in given if name in OWN_HEADERS}


def widened(client: httpx2.AsyncClient) -> httpx2.AsyncClient:
    """An SDK's client on aiohttp that takes answers with more and longer headers than aiohttp."""
    transports: list[Any] = [client._transport, *client._mounts.values()]
    for transport in transports:
        if transport is not None:
            transport.client = partial(_session, transport)
    return client


def _session(transport: Any) -> aiohttp.ClientSession:
    transport.client = None
    made: aiohttp.ClientSession = transport.get_client()
    connector = made.connector
    made.detach()
    return aiohttp.ClientSession(
        connector=connector,
        max_line_size=LONGEST_HEADER,
        max_field_size=LONGEST_HEADER,
        max_headers=MOST_HEADERS,
    )
