"""What a provider's refusal means to us: the same rules for all of them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import aiohttp
import httpx2

from promptstack.services.llm.errors import (
    HIDDEN,
    AnsweredAsText,
    AuthenticationFailed,
    BadResponse,
    ConnectionFailed,
    ContentRefused,
    ContextTooLong,
    Denied,
    InputRefused,
    Intercepted,
    InvalidProviderRequest,
    ModelNotFound,
    ModelQuotaExhausted,
    NeverSent,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)
from promptstack.services.llm.headers import credible_wait, limit_report, request_id, retry_after
from promptstack.services.llm.reading import WRONG_FORM, Notes, NumbersAsText, Part, parse
from promptstack.services.llm.usage import Usage
from promptstack.services.text import make_storable

LONGEST_DETAIL = 2_000
WRONG_REQUEST = 400
_KEY = re.compile(
    r"(?<![\w-])(?:(?:sk|pk|rk|ps|key|gsk|csk|xai|hf|pplx|nvapi)[-_]|AIza|ya29\.|eyJ)(?=[\w.*-]*[\d*])[\w.*-]{16,}"
    r"|(?<=Bearer )\S{8,}|(?<=Basic )\S{8,}",
    re.ASCII | re.IGNORECASE,
)
"""Keys as providers and their proxies make them (`sk-...`, `gsk_...`, `AIza...`, tokens of Google,
JWTs), also with asterisks in their midst: long, and with a digit."""

_REFUSED_KEY = (AuthenticationFailed, "does not accept the API key for this; check {key}")
_DENIED = (
    Denied,
    "or a gateway before it refused this call, for its content or for the API key; check {key}",
)
_NO_SUCH_PLACE = (
    Denied,
    "has nothing at this address; check its base URL and the model if all calls meet it",
)
_INTERCEPTED = (
    Intercepted,
    "did not answer: a proxy or firewall between us sent a page of its own instead",
)
_NO_QUOTA = (QuotaExhausted, "says that the account has no quota or money left")
_NO_MODEL_QUOTA = (ModelQuotaExhausted, "says that the quota of this model is used up")
_SLOW_DOWN = (RateLimited, "asks us to slow down")
_LONGER = (
    "says that the input is longer than it takes{bounds}: shorten it, or cut texts smaller "
    "(--chunk-tokens, CHUNK_TOKENS){server}"
)
_TOO_LONG = (ContextTooLong, _LONGER)
_REFUSED_CONTENT = (InputRefused, "refused the input by its content filter")
_TIMEOUT = (ProviderTimeout, "took too long")
_OVERLOADED = (Overloaded, "can't answer now")
_BROKE = (ServerBroke, "broke over the call")
_UNKNOWN = (ModelNotFound, "does not know the address; the model may not exist")
_NOT_OFFERED = (ModelNotFound, "does not offer this; check the model and how the server is started")
_INVALID = (InvalidProviderRequest, "says that the request is wrong")

_LIMIT = re.compile(
    r"(?:less than|context length (?:is|is only|of)|context (?:size|length) \(|batch size:|max is"
    r"|tokens >|maximum (?:of|is)|tokens allowed \(|supports up to|max input tokens:"
    r"|\"n_ctx\":) ?([\d,]+)"
)
_GIVEN = re.compile(
    r"(?:passed|requested|given:|got|input \(|request \(|input token count(?: is| \(|:)|too long:"
    r"|resulted in|contains|\"n_prompt_tokens\":) ?([\d,]+)"
)
MOST_SAID = 10**9

Meaning = tuple[type[ProviderError], str]

# The provider's own word for it comes first: its code, then its sentences, and then the status.
_BY_CODE: Mapping[str, Meaning] = {
    # OpenAI and its kin
    "invalid_api_key": _REFUSED_KEY,
    "authentication_error": _REFUSED_KEY,
    "auth_error": _REFUSED_KEY,  # LiteLLM
    "permission_error": _REFUSED_KEY,
    "account_deactivated": _REFUSED_KEY,
    "insufficient_quota": _NO_QUOTA,
    "billing_not_active": _NO_QUOTA,
    "billing_hard_limit_reached": _NO_QUOTA,
    "context_length_exceeded": _TOO_LONG,
    "max_tokens_per_request": _TOO_LONG,
    "string_above_max_length": _TOO_LONG,
    "exceed_context_size_error": _TOO_LONG,
    "content_filter": _REFUSED_CONTENT,
    "content_policy_violation": _REFUSED_CONTENT,
    "data_inspection_failed": _REFUSED_CONTENT,
    "model_not_found": _UNKNOWN,
    "DeploymentNotFound": _UNKNOWN,
    "not_supported_error": _NOT_OFFERED,
    # Anthropic
    "billing_error": _NO_QUOTA,
    "request_too_large": _TOO_LONG,
    "overloaded_error": _OVERLOADED,
    "timeout_error": _TIMEOUT,
    "not_found_error": _UNKNOWN,
    # Gemini
    "API_KEY_INVALID": _REFUSED_KEY,
    "UNAUTHENTICATED": _REFUSED_KEY,
    "PERMISSION_DENIED": _REFUSED_KEY,
    "NOT_FOUND": _UNKNOWN,
    "DEADLINE_EXCEEDED": _TIMEOUT,
}
_BY_STATUS: Mapping[int, Meaning] = {
    401: _DENIED,
    402: _NO_QUOTA,
    403: _DENIED,
    404: _NO_SUCH_PLACE,
    405: _NO_SUCH_PLACE,
    407: _DENIED,
    408: _TIMEOUT,
    409: _OVERLOADED,
    413: _TOO_LONG,
    424: _BROKE,  # Hugging Face: the model failed over the input
    425: _OVERLOADED,
    429: _SLOW_DOWN,
    451: _REFUSED_CONTENT,
    499: _BROKE,
    501: _NOT_OFFERED,
    503: _OVERLOADED,
    # Cloudflare: nobody is there. With 520 and 524 somebody is, and did not answer well.
    **dict.fromkeys((521, 522, 523, 525, 526, 527, 529, 530), _OVERLOADED),
}
_OF_INPUT = frozenset({400, 401, 403, 413, 422, 451, 500})
"""Statuses with which words decide; 429 only with some, as it may be of all calls together."""
_ANY = _OF_INPUT | {429}
_NO_PAGES = frozenset({408, 409, 413, 429})
"""Those below 500 that mean the same on a proxy's page; the others say nothing there."""
# Where a provider has no code for it, only its words tell. Lower case; taken in this order. What it
# says may quote the request, such as the name of a tool: nobody's words may close an account, so
# those of spent quota count only of whom, and with the status, they are known of.
_BY_WORDS: tuple[tuple[str, Meaning, str | None, frozenset[int]], ...] = (
    ("credit balance is too low", _NO_QUOTA, "anthropic", _ANY),  # status 400
    ("spend limit", _NO_QUOTA, "anthropic", _ANY),
    ("api usage limits", _NO_QUOTA, "anthropic", _ANY),  # 400: the spending somebody set
    # Gemini's quotaId of a day's quota, which no short wait cures
    ("perdayperprojectpermodel", _NO_MODEL_QUOTA, None, frozenset({429})),
    ("perday", _NO_QUOTA, None, frozenset({429})),
    ("request too large", _TOO_LONG, None, _ANY),  # OpenAI: more than a minute's tokens
    ("api key", _REFUSED_KEY, None, frozenset({401})),
    ("subscription key", _REFUSED_KEY, None, frozenset({401})),  # Azure
    ("model", _UNKNOWN, None, frozenset({404})),  # vLLM, Ollama and others, each in its own words
    ("upstream connect error", _BROKE, None, frozenset({503})),  # Envoy: it died over the call
    *(
        (words, _TOO_LONG, None, _OF_INPUT)
        for words in (
            "maximum context length",  # OpenAI's embeddings, vLLM, Mistral
            "prompt is too long",  # Anthropic
            "input token count",  # Gemini
            "too large to process",  # llama.cpp: its physical batch; status 500
            "available context size",  # llama.cpp
            "exceeds the context length",  # Ollama
            "exceeds maximum context length",  # Ollama before
            "model's context length",  # SGLang
            "tokens. given:",  # TEI: "must have less than 512 tokens. Given: 600"
            "too many tokens",  # Cohere, Mistral
            "too many input tokens",  # Bedrock
            "input is too long",  # Bedrock
            "max allowed tokens",  # Voyage
        )
    ),
    *(
        (words, _REFUSED_CONTENT, None, _OF_INPUT - {429, 500})
        for words in (
            "content management policy",  # Azure
            "content filter",  # Anthropic: "blocked by content filtering policy"
            "content policy",
            "usage guidelines",  # xAI, status 403
            "input was flagged",  # OpenRouter, status 403
            "guardrail",
            "content exists risk",  # DeepSeek
        )
    ),
)


def refusal(provider: str, answer: httpx2.Response, key_setting: str, wire: str) -> ProviderError:
    """Return the error that an answer is, by its status and by what it says."""
    try:
        body = parse(answer.content)
    except WRONG_FORM:
        body = Part(None, Notes())
    # Some servers don't put it into an object of its own.
    told = body.part("error") if body.get("error") is not None else body
    facts = told.parts("details")
    waits = [_seconds(fact.get("retryDelay")) for fact in facts]
    return from_status(
        provider,
        answer.status_code,
        key_setting=key_setting,
        wire=wire,
        codes=[
            *(fact.get("reason") for fact in facts),
            *(told.get(name) for name in ("code", "type", "status")),
        ],
        text=answer.content.decode(errors="replace"),
        headers=answer.headers,
        wait=next((wait for wait in waits if wait is not None), None),
    )


def _seconds(delay: object) -> float | None:
    """What google.rpc.RetryInfo asks for, such as "3.5s", in seconds."""
    found = re.fullmatch(r"([0-9.]{1,20})s", delay) if isinstance(delay, str) else None
    try:
        return None if found is None else credible_wait(float(found[1]))
    except ValueError:
        return None


def from_status(
    provider: str,
    status: int,
    *,
    key_setting: str,
    codes: Iterable[object],
    text: str,
    headers: Mapping[str, str],
    wait: float | None = None,
    wire: str | None = None,
    usage: Usage | None = None,
) -> ProviderError:
    """Return the error that a refusal means.

    `codes` are the provider's own, the most telling first; `text` is its body; `wait` is what it
    asks us to wait, in seconds, where the headers don't hold it; `wire` is whose API it speaks,
    where that isn't its name; `usage` is what it took where it says so. The sentence is ours
    alone: what the provider wrote may repeat the prompt and goes to `detail`.
    """
    kind, meaning = _meaning(wire or provider, status, codes, text)
    call = request_id(headers)
    wait = retry_after(headers, datetime.now(UTC)) if wait is None else wait
    limit, given = token_bounds(text) if issubclass(kind, ContextTooLong) else (None, None)
    words = {
        "key": key_setting,
        "bounds": f" ({given or 'more'} tokens; it takes {limit})" if limit else "",
        "server": ", or start the server with a larger --ubatch-size"
        if "physical batch" in text
        else "",
    }
    known = f", request {call}" if call else ""
    error = kind(
        f"{provider} {meaning.format(**words)} (status {status}{known}).",
        detail=detail(text),
        retry_after=wait if kind.transient else None,
        status=status,
        request_id=call,
        limits=limit_report(headers),
        usage=usage,
    )
    if isinstance(error, ContextTooLong):
        error.limit, error.given = limit, given
    return error


def token_bounds(text: str) -> tuple[int | None, int | None]:
    """How many tokens a refusal says that an input may have, and how many it has.

    What comes late in it quotes the input.
    """
    said = text[:LONGEST_DETAIL].lower()
    limit, given = (_number(pattern, said) for pattern in (_LIMIT, _GIVEN))
    return limit, given if limit and given and given > limit else None


def _number(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    digits = found[1].replace(",", "") if found else ""
    return int(digits) if digits.isascii() and 0 < len(digits) < len(str(MOST_SAID)) else None


def _meaning(wire: str, status: int, codes: Iterable[object], text: str) -> Meaning:
    if is_page(text):
        # Whatever it says: nobody's key, model or account is wrong because a proxy says so.
        is_told = status in _NO_PAGES or status >= 500
        return _of_status(status) if is_told else _INTERCEPTED
    return _told(wire, status, codes, text) or _of_status(status)


def _told(wire: str, status: int, codes: Iterable[object], text: str) -> Meaning | None:
    """What the provider's own codes and words mean."""
    for code in codes:
        if isinstance(code, str) and code in _BY_CODE:
            return _BY_CODE[code]
    said = text.lower()
    for words, meaning, sayer, statuses in _BY_WORDS:
        if status in statuses and sayer in {None, wire} and words in said:
            return meaning
    return None


def _of_status(status: int) -> Meaning:
    return _BY_STATUS.get(status, _BROKE if status >= 500 else _INVALID)


def is_page(text: str) -> bool:
    """Whether it is HTML or XML, which no provider answers: somebody in between does."""
    return text.lstrip("\ufeff \t\r\n").startswith("<")


def timed_out(provider: str) -> ProviderTimeout:
    """No answer in time."""
    return ProviderTimeout(f"{provider} did not answer in time; the call may still be billed.")


def never_sent(provider: str) -> NeverSent:
    """No connection was made."""
    return NeverSent(f"{provider} could not be reached; check the network and its address.")


def broken(provider: str, error: BaseException) -> ConnectionFailed:
    """No connection, or one that broke when the request may have arrived."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError):
            return never_sent(provider)
        cause = cause.__cause__ or cause.__context__
    return ConnectionFailed(f"The connection to {provider} broke; the call may still be billed.")


def unusable(provider: str) -> BadResponse:
    """An answer that can't be one."""
    return BadResponse(f"{provider} answered in a form that cannot be used.")


def refused(
    provider: str, why: str, answer: httpx2.Response, usage: Usage | None, notes: object
) -> ContentRefused:
    """An answer that says that there will be none, and what it took all the same."""
    return ContentRefused(
        f"{provider} refused to answer this input.",
        detail=detail(why),
        status=answer.status_code,
        request_id=request_id(answer.headers),
        limits=limit_report(answer.headers),
        usage=usage,
        note=str(notes),
    )


@dataclass
class Read:
    """An answer that is being read."""

    body: Part
    usage: Usage | None = None
    """What it took, once that was read: it was paid for also where it can't be used."""


@contextmanager
def reading(provider: str, answer: httpx2.Response, key_setting: str, wire: str) -> Iterator[Read]:
    """Turn whatever is wrong with the form of an answer into `BadResponse`.

    An error that came as an answer is that error, and a page is no answer.
    """
    read = Read(Part(None, Notes()))
    try:
        read.body = parse(answer.content)
        yield read
    except WRONG_FORM as error:
        told = read.body.part("error")
        text = answer.content.decode(errors="replace")
        codes = [told.get("code"), told.get("type"), told.get("status")]
        status = re.fullmatch("[45][0-9][0-9]", str(codes[0]))
        # Words count only where they are those of an error: an answer may hold any.
        said = json.dumps(read.body.get("error"))
        number = int(status.group()) if status else WRONG_REQUEST
        if status or is_page(text) or _told(wire, number, codes, said):
            raise from_status(
                provider,
                answer.status_code if is_page(text) else number,
                key_setting=key_setting,
                wire=wire,
                codes=codes,
                text=text,
                headers=answer.headers,
                usage=read.usage,
            ) from error
        bad, why = BadResponse, "in a form that cannot be used; nothing was stored"
        if isinstance(error, NumbersAsText):
            bad, why = (
                AnsweredAsText,
                "the numbers of vectors as text; use a server that sends numbers",
            )
        raise bad(
            f"{provider} answered {why}.",
            detail=detail(f"{error}: {text[:LONGEST_DETAIL]}"),
            status=answer.status_code,
            request_id=request_id(answer.headers),
            limits=limit_report(answer.headers),
            usage=read.usage,
            note=str(read.body.notes),
        ) from error


def detail(text: str) -> str:
    """What a provider said, as far as it can be stored and shown: without what looks like a key.

    A wrong key is quoted by some, whole or in part, and a server in between may quote the headers.
    """
    return make_storable(_KEY.sub(HIDDEN, text[: 2 * LONGEST_DETAIL]))[:LONGEST_DETAIL]
