"""OpenAI, and every server that speaks its API, on the official SDK.

Requests go through the SDK's `post` and `get` with the raw response as the answer, which costs
0.5 ms of CPU a call where `chat.completions.create` costs 1.0 ms (measured on 3.54). Vectors are
asked for in base64 and decoded here, because the SDK's lists of floats cost far more.
"""

import asyncio
import json
import math
import re
import time
import warnings
from binascii import a2b_base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar
from uuid import UUID

import aiohttp
import httpx2
import numpy as np
import numpy.typing as npt
import openai
from pydantic import JsonValue
from pydantic_core import from_json

from services.errors import InvalidInput
from services.llm.base import (
    Capability,
    EmbeddingLimits,
    EmbeddingResponse,
    GenerationRequest,
    LLMResponse,
    LLMService,
)
from services.llm.errors import (
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    ContextTooLong,
    InvalidProviderRequest,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
)
from services.text import make_storable

OPENAI_URL = "https://api.openai.com/v1"
CONNECT_SECONDS = 10.0
AVAILABILITY_SECONDS = 5.0
LONGEST_WAIT = 86_400.0
LONGEST_DETAIL = 2_000

# The aiohttp transport keeps every connection up to `max_connections` alive and ignores
# `max_keepalive_connections`. Idle ones are dropped just before uvicorn, which serves most
# compatible APIs, drops them after 5 s: a POST that meets a closing connection is lost.
CONNECTIONS = httpx2.Limits(max_connections=1_000, keepalive_expiry=4.0)

RESERVED_OPTIONS = frozenset({"model", "messages", "n", "stream"})


class OpenAIService(LLMService):
    """Generations and embeddings from OpenAI or, by `base_url`, from a compatible server.

    One client with one connection pool, made on the first call and bound to the event loop of
    that call.
    """

    name = "openai"
    default_models: ClassVar[Mapping[Capability, str]] = {
        Capability.GENERATION: "gpt-5-mini",
        Capability.EMBEDDING: "text-embedding-3-small",
    }
    known_options: ClassVar[frozenset[str] | None] = None
    # The API takes 300,000 tokens a request and counts a byte as a quarter of a token. It takes
    # 8,192 real tokens a text; 4 bytes each is the same rule, which fits prose in Latin script.
    # Denser text under this bound is refused by the API itself as `ContextTooLong`.
    embedding_limits: ClassVar[EmbeddingLimits] = EmbeddingLimits(items=2_048, bytes=1_200_000)

    def __init__(
        self,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        timeout: float = 60.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(clock=clock)
        self._api_key = (api_key or "").strip()
        self._base_url = base_url
        self._timeout = timeout
        self._client: openai.AsyncOpenAI | None = None

    @classmethod
    def check_options(cls, options: Mapping[str, JsonValue]) -> None:
        """Pass everything on but what has a field of its own or changes the answer's form."""
        reserved = ", ".join(sorted(RESERVED_OPTIONS & options.keys()))
        if reserved:
            raise InvalidInput(f"Provider '{cls.name}' doesn't take {reserved} as an option.")

    async def _generate(
        self, request: GenerationRequest, user_id: UUID | None, failures: int
    ) -> LLMResponse:
        try:
            self.check_options(request.options)
        except InvalidInput as error:
            raise InvalidProviderRequest(str(error)) from error
        fields = {
            "model": request.model,
            "messages": [turn.model_dump() for turn in request.conversation()],
            "temperature": request.temperature,
            "max_completion_tokens": request.max_tokens,
            "stop": request.stop or None,
            "seed": request.seed,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        answer = await self._ask("/chat/completions", given | request.options)
        with _reading(answer):
            # Only the standard parser takes half a surrogate pair, which make_storable replaces.
            body = json.loads(answer.content)
            choice = body["choices"][0]
            text = _text_of(choice, answer)
            prompt = sum(self.count_tokens(turn.content) for turn in request.conversation())
            return LLMResponse(
                text=text,
                model=make_storable(body.get("model") or request.model),
                input_tokens=_tokens(body, "prompt_tokens", prompt),
                output_tokens=_tokens(body, "completion_tokens", self.count_tokens(text)),
                finish_reason=make_storable(choice.get("finish_reason") or "unknown"),
                provider_request_id=_request_id(answer),
            )

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        answer = await self._ask(
            "/embeddings", {"model": model, "input": list(texts), "encoding_format": "base64"}
        )
        with _reading(answer):
            body = from_json(answer.content)
            rows = sorted(body["data"], key=lambda row: row["index"])
            if [row["index"] for row in rows] != list(range(len(texts))):
                raise ValueError("there isn't exactly one vector for each text")
            return EmbeddingResponse(
                vectors=np.stack([_vector(row["embedding"]) for row in rows]),
                model=make_storable(body.get("model") or model),
                input_tokens=_tokens(body, "prompt_tokens", sum(map(self.count_tokens, texts))),
                provider_request_id=_request_id(answer),
            )

    def count_tokens(self, text: str) -> int:
        """An estimate: a quarter of the UTF-8 bytes, rounded up.

        It's the rule by which the API itself counts embedding requests.
        """
        return math.ceil(len(text.encode()) / 4)

    async def is_available(self) -> bool:
        """Whether the list of models is answered within a few seconds."""
        try:
            async with asyncio.timeout(AVAILABILITY_SECONDS):
                await self._ask("/models")
        except (ProviderError, TimeoutError):
            return False
        return True

    async def aclose(self) -> None:
        """Close the pooled connections. A later call opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        """POST `body`, or GET when there is none."""
        client = self._connected()
        try:
            # The client's own timeout starts again with each piece of an answer; this one doesn't.
            async with asyncio.timeout(self._timeout):
                if body is None:
                    return await client.get(path, cast_to=httpx2.Response)
                return await client.post(path, cast_to=httpx2.Response, body=body)
        except (openai.OpenAIError, aiohttp.ClientError, TimeoutError) as error:
            raise translate(error) from error

    def _connected(self) -> openai.AsyncOpenAI:
        if self._client is None:
            if not self._api_key and not self._base_url:
                raise AuthenticationFailed("openai needs an API key; set OPENAI_API_KEY.")
            if not (self._api_key.isascii() and self._api_key.isprintable()):
                raise AuthenticationFailed("OPENAI_API_KEY has characters that no key has.")
            # aiohttp warns of bodies over 1 MiB, but all they cost is a copy to the socket.
            warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
            timeout = httpx2.Timeout(self._timeout, connect=CONNECT_SECONDS)
            self._client = openai.AsyncOpenAI(
                # Without a placeholder the SDK would send the environment's OpenAI key, and
                # without a URL it would send ours to the environment's OPENAI_BASE_URL.
                api_key=self._api_key or "none",
                base_url=self._base_url or OPENAI_URL,
                max_retries=0,
                timeout=timeout,
                http_client=openai.DefaultAioHttpClient(limits=CONNECTIONS, timeout=timeout),
            )
        return self._client


@contextmanager
def _reading(answer: httpx2.Response) -> Iterator[None]:
    """Turn whatever is wrong with the form of an answer into `BadResponse`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise BadResponse(
            "openai answered in a form that cannot be used; nothing was stored.",
            detail=_detail(f"{error}: {answer.text[:LONGEST_DETAIL]}"),
            status=answer.status_code,
            request_id=_request_id(answer),
        ) from error


def _text_of(choice: Mapping[str, Any], answer: httpx2.Response) -> str:
    message = choice["message"]
    text = message.get("content") or ""
    refusal = message.get("refusal")
    if not text and (refusal or choice.get("finish_reason") == "content_filter"):
        raise ContentRefused(
            "openai refused to answer this input.",
            detail=_detail(refusal or "content_filter"),
            status=answer.status_code,
            request_id=_request_id(answer),
        )
    return make_storable(text)


def _vector(embedding: str | list[float]) -> npt.NDArray[np.float32]:
    if isinstance(embedding, str):
        return np.frombuffer(a2b_base64(embedding, strict_mode=True), dtype="<f4")
    # A number too large for float32 becomes infinite, which `embed` refuses.
    with np.errstate(over="ignore"):
        return np.array(embedding, dtype=np.float32)


def _tokens(body: Mapping[str, Any], name: str, estimate: int) -> int:
    """What the answer says it used; some servers say nothing."""
    used = (body.get("usage") or {}).get(name)
    return estimate if used is None else int(used)


def _request_id(response: httpx2.Response) -> str | None:
    """The provider's id for a call, unless it has a form that could carry anything else."""
    found = re.fullmatch(r"[\w.:-]{1,100}", response.headers.get("x-request-id", ""))
    return found and found.group()


def _detail(text: str) -> str:
    return make_storable(text[:LONGEST_DETAIL])


_REFUSED_KEY = (AuthenticationFailed, "does not accept the API key for this; check OPENAI_API_KEY")
_NO_QUOTA = (QuotaExhausted, "says that the account has no quota or money left")
_SLOW_DOWN = (RateLimited, "asks us to slow down")
_TOO_LONG = (ContextTooLong, "says that the input is longer than it takes")
_REFUSED_CONTENT = (ContentRefused, "refused the input by its content filter")
_TIMEOUT = (ProviderTimeout, "took too long")
_OVERLOADED = (Overloaded, "can't answer now")
_UNKNOWN = (InvalidProviderRequest, "does not know the address; the model may not exist")
_INVALID = (InvalidProviderRequest, "says that the request is wrong")

_BY_CODE: Mapping[str, tuple[type[ProviderError], str]] = {
    "insufficient_quota": _NO_QUOTA,
    "billing_not_active": _NO_QUOTA,
    "billing_hard_limit_reached": _NO_QUOTA,
    "context_length_exceeded": _TOO_LONG,
    "max_tokens_per_request": _TOO_LONG,
    "string_above_max_length": _TOO_LONG,
    "exceed_context_size_error": _TOO_LONG,
    "content_filter": _REFUSED_CONTENT,
    "content_policy_violation": _REFUSED_CONTENT,
}
_BY_STATUS: Mapping[int, tuple[type[ProviderError], str]] = {
    401: _REFUSED_KEY,
    402: _NO_QUOTA,
    403: _REFUSED_KEY,
    404: _UNKNOWN,
    408: _TIMEOUT,
    409: _OVERLOADED,
    413: _TOO_LONG,
    429: _SLOW_DOWN,
}


def translate(error: Exception) -> ProviderError:
    """Say what an error of the SDK or its transport means to us.

    The sentence is ours alone: what the provider wrote may repeat the prompt and goes to `detail`.
    """
    if isinstance(error, openai.APIStatusError):
        return _from_status(error)
    # The aiohttp transport names every broken or refused connection a ConnectTimeout, and the SDK
    # then calls it a timeout.
    if isinstance(error.__cause__, httpx2.ConnectTimeout):
        return ConnectionFailed("The connection to openai failed or broke.")
    if isinstance(error, (openai.APITimeoutError, TimeoutError)):
        return ProviderTimeout("openai did not answer in time; the call may still be billed.")
    if isinstance(error, openai.APIConnectionError):
        return ConnectionFailed("The connection to openai failed or broke.")
    return BadResponse("openai answered in a form that cannot be used.")


def _from_status(error: openai.APIStatusError) -> ProviderError:
    status, response = error.status_code, error.response
    fallback = _OVERLOADED if status >= 500 else _INVALID
    kind, meaning = (
        _BY_CODE.get(str(error.code))
        or _BY_CODE.get(str(error.type))
        or _BY_STATUS.get(status, fallback)
    )
    # The embeddings API and vLLM give this no code of its own.
    if kind is InvalidProviderRequest and "maximum context length" in response.text:
        kind, meaning = _TOO_LONG
    request_id = _request_id(response)
    return kind(
        f"openai {meaning} (status {status}, request {request_id or 'unknown'}).",
        detail=_detail(response.text),
        retry_after=retry_after(response.headers, datetime.now(UTC)) if kind.transient else None,
        status=status,
        request_id=request_id,
    )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a response asks us to wait.

    `retry-after-ms` goes before `retry-after`, which holds seconds or an HTTP date. What is
    unreadable, negative or in the past counts as not said; more than a day counts as a day.
    """
    plain = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    for wait in (milliseconds / 1_000, _number(plain), _seconds_until(plain, now)):
        if wait >= 0:
            return min(wait, LONGEST_WAIT)
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(http_date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (ValueError, OverflowError):
        return math.nan
