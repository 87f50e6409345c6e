"""The wire of Gemini: content, embeddings, the count of tokens and the list of models."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from promptstack.simulator.answers import tokens_in, vector_for
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.limits import LimitReached
from promptstack.simulator.requests import (
    GenerationRequest,
    is_refused,
    known,
    make,
    required,
    text_of,
)
from promptstack.simulator.streams import of_content
from promptstack.simulator.wire import Answer, LimitStatus, ProviderRequest, Refusal, Wire

BASE = "/{version:v1|v1beta}/models/{model}"
"""The SDK takes v1 since 3.4, and took v1beta before."""
GENERATE = "generateContent"
EMBED = "embedContent"
MODELS = ("gemini-2.5-flash", "gemini-embedding-001", "gemini-embedding-2")
DIMENSIONS = 3_072
MOST_CONTENTS = 100
THOUGHT_TOKENS = 16
"""Of a model that is told how much to think."""
RETRY_INFO = "type.googleapis.com/google.rpc.RetryInfo"
QUOTA_FAILURE = "type.googleapis.com/google.rpc.QuotaFailure"
ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"

_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_QUOTAS = {
    "requests": "GenerateRequestsPerMinutePerProjectPerModel",
    "tokens": "GenerateContentInputTokensPerModelPerMinute",
}


def refuse(refusal: Refusal, request_id: str) -> Mapping[str, Any]:
    """Make an error body; it holds the time to retry, which Gemini does not send in headers."""
    status, message = refusal.status, refusal.message
    details: list[dict[str, Any]] = []
    if refusal.code == "insufficient_quota":
        quota = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
        details.append({"@type": QUOTA_FAILURE, "violations": [quota]})
    elif isinstance(refusal, LimitReached):
        quota = {"quotaId": _QUOTAS.get(refusal.dimension, _QUOTAS["requests"])}
        details.append({"@type": QUOTA_FAILURE, "violations": [quota]})
        if refusal.wait is not None:
            details.append({"@type": RETRY_INFO, "retryDelay": f"{refusal.wait:.3f}s"})
    if status == 401:
        # Google uses another status for it.
        details.append({"@type": ERROR_INFO, "reason": "API_KEY_INVALID"})
    if refusal.code == "context_length_exceeded":
        message = "The input token count (2000000) exceeds the maximum number of tokens allowed."
    name = _STATUSES.get(status, "UNKNOWN")
    return {"error": {"code": status, "message": message, "status": name, "details": details}}


def limit_headers(limits: Mapping[str, LimitStatus]) -> Mapping[str, str]:
    """Return no headers: Gemini doesn't tell its limits."""
    return {}


def generate(request: ProviderRequest) -> Answer:
    """Answer one content."""
    generation = _request(request)
    output = make(generation, request.fault)
    parts: list[dict[str, Any]] = [{"text": output.text}]
    if output.arguments is not None:
        parts = [{"functionCall": {"name": generation.tool, "args": output.arguments}}]
    candidate = {
        "content": {"role": "model", "parts": parts},
        "finishReason": "MAX_TOKENS" if output.is_cut else "STOP",
        "index": 0,
    }
    config = request.body.get("generationConfig") or {}
    thoughts = THOUGHT_TOKENS if config.get("thinkingConfig") else 0
    answer: dict[str, Any] = {
        "candidates": [] if request.fault.kind == "wrong_count" else [candidate],
        "usageMetadata": {
            "promptTokenCount": output.input_tokens,
            "cachedContentTokenCount": output.cached_tokens,
            "candidatesTokenCount": output.output_tokens,
            "thoughtsTokenCount": thoughts,
            "totalTokenCount": output.input_tokens + output.output_tokens + thoughts,
        },
        "modelVersion": generation.model,
        "responseId": "simulated",
    }
    if is_refused(request):
        answer["candidates"], answer["promptFeedback"] = [], {"blockReason": "SAFETY"}
    key = billing_key(GENERATE, generation.model, "\n".join(generation.prompts))
    return Answer(answer, (key,), output.input_tokens, output.output_tokens + thoughts)


def stream_generate(request: ProviderRequest) -> Answer:
    """Answer one content as a stream. It is billed as any other."""
    answer = generate(request)
    return replace(answer, stream=of_content(answer.body))


def embed(request: ProviderRequest) -> Answer:
    """Embed one content."""
    required(request.body, "content", dict)
    return _embedded(request, [request.body], lambda rows: {"embedding": rows[0] if rows else None})


def batch_embed(request: ProviderRequest) -> Answer:
    """Embed a batch of contents."""
    requests = required(request.body, "requests", list)
    if not 1 <= len(requests) <= MOST_CONTENTS:
        raise Refusal(400, f"at most {MOST_CONTENTS} requests can be in one batch")
    return _embedded(request, requests, lambda rows: {"embeddings": rows})


def count_tokens(request: ProviderRequest) -> Answer:
    """Count, which is free."""
    contents = required(request.body, "contents", list)
    return Answer({"totalTokens": sum(tokens_in(_text(content)) for content in contents)})


def models(request: ProviderRequest) -> Answer:
    """List the models."""
    return Answer({"models": [{"name": f"models/{name}"} for name in MODELS]})


GEMINI = Wire(
    endpoints={
        ("POST", f"{BASE}:{GENERATE}"): generate,
        ("POST", f"{BASE}:streamGenerateContent"): stream_generate,
        ("POST", f"{BASE}:{EMBED}"): embed,
        ("POST", f"{BASE}:batchEmbedContents"): batch_embed,
        ("POST", f"{BASE}:countTokens"): count_tokens,
    },
    refuse=refuse,
    limit_headers=limit_headers,
    tells_when_in_body=True,
)


def _embedded(request: ProviderRequest, requests: Sequence[Mapping[str, Any]], form: Any) -> Answer:
    model = known(request.path["model"])
    texts = [_text(one["content"]) for one in requests]
    if not all(texts):
        raise Refusal(400, "content contains an empty Part.")
    rows: list[dict[str, Any]] = []
    for one, text in zip(requests, texts, strict=True):
        vector = vector_for(model, text, one.get("outputDimensionality") or DIMENSIONS)
        if request.fault.kind == "nan" and not rows:
            vector[0] = np.nan
        if request.fault.kind == "short":
            vector = vector[:-1]
        rows.append({"values": vector})
    if request.fault.kind == "wrong_count":
        rows.pop()
    elif request.fault.kind == "shuffled":
        rows.reverse()
    return Answer(
        form(rows),
        billed=tuple(billing_key(EMBED, model, text) for text in texts),
        input_tokens=sum(map(tokens_in, texts)),
    )


def _request(request: ProviderRequest) -> GenerationRequest:
    body, contents = request.body, required(request.body, "contents", list)
    if not contents:
        raise Refusal(400, "contents is not specified")
    config = body.get("generationConfig") or {}
    system = _text(body.get("systemInstruction") or {})
    declared = [
        function
        for tool in body.get("tools") or ()
        for function in tool.get("functionDeclarations") or ()
    ]
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    answered = any("functionResponse" in part for part in contents[-1].get("parts") or ())
    calls = declared and calling.get("mode") != "NONE" and not answered
    tool = declared[0] if calls else None
    return GenerationRequest(
        model=known(request.path["model"]),
        prompts=[*([system] if system else []), *map(_text, contents)],
        most_tokens=config.get("maxOutputTokens"),
        schema=config.get("responseJsonSchema") or config.get("responseSchema"),
        tool=tool["name"] if tool else None,
        tool_schema=_parameters(tool) if tool else None,
    )


def _parameters(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a tool's arguments, in any of Google's spellings; the SDK mixes them."""
    names = ("parametersJsonSchema", "parameters_json_schema", "parameters")
    return next((tool[name] for name in names if tool.get(name)), {})


def _text(content: Mapping[str, Any]) -> str:
    parts = content.get("parts") or []
    return text_of([part if "text" in part else {"content": part} for part in parts])
