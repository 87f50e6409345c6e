"""OpenAI, and every server that speaks its API, on the official SDK.

Vectors come in base64 and are decoded here, as the SDK's lists of floats cost far more.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import httpx2
import openai
import tiktoken
from pydantic import JsonValue

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import (
    Capability,
    EmbeddingResponse,
    LLMResponse,
    TokenCount,
    Usage,
)
from promptstack.services.llm.errors import InvalidProviderRequest
from promptstack.services.llm.headers import limit_report, request_id
from promptstack.services.llm.http_clients import ProviderClient
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.openai import chat, responses
from promptstack.services.llm.openai.streams import ChatAssembly, ResponseAssembly
from promptstack.services.llm.openai.substitutes import (
    SUBSTITUTES,
    as_taken,
    refused_field,
    without,
)
from promptstack.services.llm.packing import EmbeddingInput, EmbeddingLimits
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.reading import credible
from promptstack.services.llm.requests import GenerationRequest, with_options
from promptstack.services.llm.sdk import SDKService
from promptstack.services.llm.vectors import vectors

OPENAI_URL = "https://api.openai.com/v1"


RESERVED_OPTIONS = frozenset(
    {"model", "messages", "input", "n", "stream", "stream_options", "background"}
)
RESPONSES = "responses"
EMBEDDINGS = "/embeddings"
APIS = ("chat", RESPONSES)
"""A tuple and no set: a caller may give a value without a hash."""
ENCODINGS = "https://openaipublic.blob.core.windows.net/encodings"
DIMENSIONS: Mapping[str, int] = {
    "text-embedding-3-small": 1_536,
    "text-embedding-3-large": 3_072,
    "text-embedding-ada-002": 1_536,
}
"""The sizes of models' vectors where no request asks for another size."""


class OpenAIService(SDKService[openai.AsyncOpenAI]):
    """Generations and embeddings from OpenAI or, by `base_url`, from a compatible server.

    Generations go to chat completions, which every compatible server has, or with the option
    `api` = `responses` to the Responses API.
    """

    name = "openai"
    wire = "openai"
    official_url = OPENAI_URL
    key_setting = "OPENAI_API_KEY"
    reserved_options = RESERVED_OPTIONS
    default_models: ClassVar[Mapping[Capability, str]] = {
        Capability.GENERATION: "gpt-5-mini",
        Capability.EMBEDDING: "text-embedding-3-small",
    }
    known_options: ClassVar[frozenset[str] | None] = None
    takes_dimensions = True
    takes_token_ids = True
    # The API accepts 300,000 tokens a request, where a byte counts as a quarter of a token, and
    # 8,192 real tokens a text. No text has 8 bytes a token; a shorter text with too many tokens is
    # refused by the API itself, as `ContextTooLong`.
    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(
        items=2_048, bytes=1_200_000, text_bytes=8 * 8_192
    )

    @classmethod
    def check_options(cls, options: Mapping[str, JsonValue]) -> None:
        """Also refuse an option `api` that names neither of the two APIs."""
        super().check_options(options)
        if options.get("api", "chat") not in APIS:
            raise InvalidInput(f"The option api must be chat or {RESPONSES}.")

    @classmethod
    def take_openai_options(cls, options: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        """Accept all: other fields of an OpenAI request are options here."""
        return dict(options)

    @classmethod
    def check_parameters(cls, model: str, parameters: GenerationParameters) -> None:
        """Also refuse `stop` and `seed` where the Responses API is asked, which lacks them."""
        super().check_parameters(model, parameters)
        if parameters.options.get("api") != RESPONSES:
            return
        lacking = [name for name in ("stop", "seed") if getattr(parameters, name) not in {None, ()}]
        if lacking:
            raise InvalidInput(
                f"The Responses API does not support {', '.join(lacking)}; leave it out, or leave "
                "out the option api."
            )

    @classmethod
    def check_turns(cls, request: GenerationRequest) -> None:
        """Refuse names, which the Responses API lacks."""
        if request.options.get("api") == RESPONSES:
            request.check_no_names("The Responses API")

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        self._check_again(request)
        wire = responses if request.options.get("api") == RESPONSES else chat
        answer = await self._ask_as_taken(wire.PATH, _body(request), request.model)
        return self._response(answer, request, wire.read)

    async def _stream(
        self, request: GenerationRequest, user_id: UUID | None, failures: int, listener: Listener
    ) -> LLMResponse:
        self._check_again(request)
        body = {**_body(request), "stream": True}
        if request.options.get("api") == RESPONSES:
            ask = self._ask_as_taken(responses.PATH, body, request.model)
            return await self._streamed(ask, request, responses.read, ResponseAssembly(listener))
        body["stream_options"] = {"include_usage": True}
        ask = self._ask_as_taken(chat.PATH, body, request.model)
        return await self._streamed(ask, request, chat.read, ChatAssembly(listener))

    async def _embed(
        self,
        texts: Sequence[EmbeddingInput],
        model: str,
        user_id: UUID | None,
        dimensions: int | None,
    ) -> EmbeddingResponse:
        asked: dict[str, Any] = {"model": model, "input": list(texts), "encoding_format": "base64"}
        if dimensions is not None:
            asked["dimensions"] = dimensions
        answer = await self._ask_as_taken(EMBEDDINGS, asked, model)
        with self._reading(answer) as found:
            body = found.body
            told = body.part("usage", is_expected=True)
            used = told.count("prompt_tokens", told.count("total_tokens", 0) or None)
            found.usage = credible(Usage(used), "", body.notes)
            rows, others = vectors(body.parts("data"), "embedding", len(texts), index="index")
            known = dimensions or (DIMENSIONS.get(model) if self.is_official else None)
            if rows.shape[1] != (known or rows.shape[1]):
                raise ValueError(f"vectors of {model} have {rows.shape[1]} dimensions")
            return EmbeddingResponse(
                vectors=rows,
                others=others,
                model=body.word("model") or model,
                input_tokens=found.usage.input_tokens,
                provider_request_id=request_id(answer.headers),
                limits=limit_report(answer.headers),
                note=str(body.notes),
            )

    async def count_tokens(self, text: str, model: str) -> TokenCount:
        """Count with tiktoken if its encoding is on this machine, else estimate.

        tiktoken downloads a missing encoding without a time-out, which a worker must not do. So it
        is only used where the folder TIKTOKEN_CACHE_DIR has the encoding.
        """
        try:
            name = tiktoken.encoding_name_for_model(model)
        except KeyError:
            return await super().count_tokens(text, model)
        if not _is_cached(name, os.environ.get("TIKTOKEN_CACHE_DIR", "")):
            return await super().count_tokens(text, model)
        encoding = await asyncio.to_thread(tiktoken.get_encoding, name)
        return TokenCount(len(encoding.encode(text, disallowed_special=())), is_exact=True)

    async def _ask_as_taken(
        self, path: str, body: Mapping[str, Any], model: str
    ) -> httpx2.Response:
        """POST `body`. If the server refuses one of its fields by name, POST a substitute.

        The refused call is not billed, and all workers send the substitute from then on.
        """
        facts = {**self.facts_of(model).model_dump(), **await self._learned.facts(model)}
        body = as_taken(body, facts)
        try:
            return await self._ask(path, body)
        except InvalidProviderRequest as error:
            field = refused_field(body, error.detail or "")
            if field is None:
                raise
        answer = await self._ask(path, without(body, field))
        self._learned.learn(model, SUBSTITUTES[field].fact, SUBSTITUTES[field].value)
        return answer

    def _connect(self, api_key: str, base_url: str, timeout: httpx2.Timeout) -> openai.AsyncOpenAI:
        self._http = ProviderClient(timeout)
        common: dict[str, Any] = {
            "api_key": api_key,
            "max_retries": 0,
            "timeout": timeout,
            "http_client": self._http,
        }
        if self._api_version is None:
            return openai.AsyncOpenAI(base_url=base_url, **common)
        # Azure: the model is the name of its deployment, which is part of the path.
        return openai.AsyncAzureOpenAI(
            azure_endpoint=base_url, api_version=self._api_version, **common
        )

    def _post(self, client: Any, path: str, body: Mapping[str, Any], content: bytes) -> Any:
        if self._api_version is None:
            return super()._post(client, path, body, content)
        # The SDK takes the deployment from the body.
        return client.post(path, cast_to=httpx2.Response, body=body)

    def _place_of(self, body: Mapping[str, Any]) -> str:
        return str(body["model"]) if self._api_version else ""

    async def _disconnect(self, client: openai.AsyncOpenAI) -> None:
        await client.close()

    async def _list_models(self) -> list[str]:
        listed = self._names_in(await self._ask("/models"))
        return [] if self._api_version else listed  # Azure lists no deployments

    async def _ask_nothing(self, kind: Capability, model: str) -> None:
        await self._ask(
            chat.PATH if kind is Capability.GENERATION else EMBEDDINGS, {"model": model}
        )


def _body(request: GenerationRequest) -> dict[str, Any]:
    """The JSON of a request, with its options."""
    wire = responses if request.options.get("api") == RESPONSES else chat
    options = {name: value for name, value in request.options.items() if name != "api"}
    return with_options(wire.body(request), options)


def _is_cached(encoding: str, folder: str) -> bool:
    """Whether a folder has an encoding under tiktoken's name for it."""
    address = f"{ENCODINGS}/{encoding}.tiktoken"
    name = sha1(address.encode(), usedforsecurity=False).hexdigest()
    return bool(folder) and (Path(folder) / name).is_file()
