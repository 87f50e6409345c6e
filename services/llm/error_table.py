"""Which error the codes, words and statuses of refusals mean: one table for all providers."""

from collections.abc import Iterable, Mapping

from promptstack.services.llm.errors import (
    AuthenticationFailed,
    ContextTooLong,
    Denied,
    InputRefused,
    Intercepted,
    InvalidProviderRequest,
    ModelNotFound,
    ModelQuotaExhausted,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    QuotaExhausted,
    RateLimited,
    ServerBroke,
)

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


Meaning = tuple[type[ProviderError], str]

# The provider's error code decides first, then its words, then the status.
_BY_CODE: Mapping[str, Meaning] = {
    # OpenAI and compatible servers
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
    424: _BROKE,  # Hugging Face: the model failed on the input
    425: _OVERLOADED,
    429: _SLOW_DOWN,
    451: _REFUSED_CONTENT,
    499: _BROKE,
    501: _NOT_OFFERED,
    503: _OVERLOADED,
    # Cloudflare found no server. With 520 and 524 it found one, which failed.
    **dict.fromkeys((521, 522, 523, 525, 526, 527, 529, 530), _OVERLOADED),
}
_OF_INPUT = frozenset({400, 401, 403, 413, 422, 451, 500})
"""Statuses with which the words decide. With 429 few do: it may be about all calls together."""
_ANY = _OF_INPUT | {429}
_NO_PAGES = frozenset({408, 409, 413, 429})
"""Statuses below 500 that mean the same on a proxy's page; others mean nothing there."""
# For refusals without a code. The words are in lower case, and the first match decides. A refusal
# may quote the request, such as the name of a tool. So that no prompt can make an account look
# spent, the words for spent quota count only from the provider and with the status that use them.
_BY_WORDS: tuple[tuple[str, Meaning, str | None, frozenset[int]], ...] = (
    ("credit balance is too low", _NO_QUOTA, "anthropic", _ANY),  # status 400
    ("spend limit", _NO_QUOTA, "anthropic", _ANY),
    (
        "api usage limits",
        _NO_QUOTA,
        "anthropic",
        _ANY,
    ),  # 400: a spending limit
    # Gemini's quotaId of a daily quota: a short wait does not help
    ("perdayperprojectpermodel", _NO_MODEL_QUOTA, None, frozenset({429})),
    ("perday", _NO_QUOTA, None, frozenset({429})),
    ("request too large", _TOO_LONG, None, _ANY),  # OpenAI: over its tokens a minute
    ("api key", _REFUSED_KEY, None, frozenset({401})),
    ("subscription key", _REFUSED_KEY, None, frozenset({401})),  # Azure
    ("model", _UNKNOWN, None, frozenset({404})),  # vLLM, Ollama and others
    (
        "upstream connect error",
        _BROKE,
        None,
        frozenset({503}),
    ),  # Envoy: the server died during the call
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


_STATUS_OF_TYPE: Mapping[object, int] = {
    "invalid_request_error": 400,
    "invalid_prompt": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "service_unavailable": 503,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_BROKE_OFF = 500


def status_of(codes: Iterable[object]) -> int:
    """The status that would have come with an error's codes, had the stream not begun."""
    known = (_STATUS_OF_TYPE[code] for code in codes if str(code) in _STATUS_OF_TYPE)
    return next(known, _BROKE_OFF)


def meaning_of(wire: str, status: int, codes: Iterable[object], text: str) -> Meaning:
    """The error that a refusal means, and the sentence for a person."""
    if is_page(text):
        # A proxy's page says nothing about the key, the model or the account.
        is_told = status in _NO_PAGES or status >= 500
        return _of_status(status) if is_told else _INTERCEPTED
    return told_meaning(wire, status, codes, text) or _of_status(status)


def told_meaning(wire: str, status: int, codes: Iterable[object], text: str) -> Meaning | None:
    """The error that the provider's codes and words mean; None where they are unknown."""
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
    """Whether a text is HTML or XML: it then comes from a server in between, no provider."""
    return text.lstrip("\ufeff \t\r\n").startswith("<")
