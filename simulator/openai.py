"""The wire of OpenAI: chat completions, embeddings and the list of models."""

import base64
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.answers import DEFAULT_DIMENSIONS, text_for, tokens_in, vector_for
from simulator.ledger import billing_key
from simulator.wire import Answer, Ask, Refusal, Standing, Wire

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = ("gpt-5-mini", "text-embedding-3-small", "text-embedding-3-large")

MOST_INPUTS = 2_048
MOST_TOKENS = 300_000
MOST_TOKENS_PER_INPUT = 8_192

_TYPES = {401: "invalid_request_error", 429: "requests", 503: "service_unavailable"}
_CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}


def refuse(refusal: Refusal) -> Mapping[str, Any]:
    """Make an error body. Some codes are their own type, as at OpenAI."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(refusal.status, kind)
    if refusal.code in {"insufficient_quota", "max_tokens_per_request"}:
        kind = refusal.code
    code = refusal.code or _CODES.get(refusal.status)
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": code}}


def chat(ask: Ask) -> Answer:
    """Answer one chat completion."""
    body, fault = ask.body, ask.fault
    model, messages = _required(body, "model", str), _required(body, "messages", list)
    if not messages:
        raise Refusal(400, "'messages' is too short.", "invalid_value")
    prompts = [str(message["content"]) for message in messages]
    text = text_for(model, prompts) + ("\0" if fault.kind == "nul" else "")
    finish_reason = "stop"
    most = body.get("max_completion_tokens")
    if most is not None and most < tokens_in(text):
        text, finish_reason = text.encode()[: 4 * most].decode(errors="ignore"), "length"
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish_reason,
    }
    spent, made = sum(map(tokens_in, prompts)), tokens_in(text)
    return Answer(
        {
            "id": "chatcmpl-simulated",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [] if fault.kind == "wrong_count" else [choice],
            "usage": {
                "prompt_tokens": spent,
                "completion_tokens": made,
                "total_tokens": spent + made,
            },
        },
        billed=(billing_key(CHAT, model, "\n".join(prompts)),),
        input_tokens=spent,
        output_tokens=made,
    )


def embeddings(ask: Ask) -> Answer:
    """Answer one embedding request."""
    body, fault = ask.body, ask.fault
    model, given = _required(body, "model", str), _required(body, "input", str | list)
    texts = [given] if isinstance(given, str) else given
    spent = _check_inputs(texts)
    dimensions = body.get("dimensions") or DEFAULT_DIMENSIONS
    vectors = [vector_for(model, text, dimensions) for text in texts]
    if fault.kind == "nan":
        vectors[0][0] = np.nan
    as_floats = body.get("encoding_format") != "base64" or fault.kind == "floats"
    data = [
        {"object": "embedding", "index": index, "embedding": _encode(vector, as_floats)}
        for index, vector in enumerate(vectors)
    ]
    if fault.kind == "wrong_count":
        data.pop()
    elif fault.kind == "duplicate":
        data[-1]["index"] = 0
    elif fault.kind == "shuffled":
        data.reverse()
    return Answer(
        {
            "object": "list",
            "data": data,
            "model": model,
            "usage": {"prompt_tokens": spent, "total_tokens": spent},
        },
        billed=tuple(billing_key(EMBEDDINGS, model, text) for text in texts),
        input_tokens=spent,
    )


def models(ask: Ask) -> Answer:
    """List the models."""
    listed = [
        {"id": name, "object": "model", "created": 0, "owned_by": "simulator"} for name in MODELS
    ]
    return Answer({"object": "list", "data": listed})


def limit_headers(limits: Mapping[str, Standing]) -> Mapping[str, str]:
    """Make the headers that OpenAI sends with every answer."""
    headers = {}
    for name, standing in limits.items():
        headers[f"x-ratelimit-limit-{name}"] = str(standing.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(standing.remaining)
        headers[f"x-ratelimit-reset-{name}"] = f"{standing.reset_seconds:.3f}s"
    return headers


OPENAI = Wire(
    endpoints={
        ("POST", CHAT): chat,
        ("POST", EMBEDDINGS): embeddings,
        ("GET", "/v1/models"): models,
    },
    refuse=refuse,
    limit_headers=limit_headers,
)


def _required(body: Mapping[str, Any], name: str, kind: Any) -> Any:
    if name not in body:
        raise Refusal(400, f"Missing required parameter: '{name}'.", "missing_required_parameter")
    if not isinstance(body[name], kind):
        raise Refusal(400, f"Invalid type for '{name}'.", "invalid_type")
    return body[name]


def _check_inputs(texts: list[Any]) -> int:
    """Return the tokens of all texts, or refuse them as OpenAI does."""
    if not texts or len(texts) > MOST_INPUTS:
        raise Refusal(400, f"Invalid 'input': give 1 to {MOST_INPUTS} texts.", "invalid_value")
    if not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, "Invalid 'input': input cannot be an empty string.", "invalid_value")
    longest = max(map(tokens_in, texts))
    if longest > MOST_TOKENS_PER_INPUT:
        # This one comes without a code.
        raise Refusal(
            400,
            f"This model's maximum context length is {MOST_TOKENS_PER_INPUT} tokens, "
            f"however you requested {longest} tokens.",
        )
    total = tokens_in("".join(texts))
    if total > MOST_TOKENS:
        raise Refusal(
            400,
            f"Requested {total} tokens, max {MOST_TOKENS} tokens per request",
            "max_tokens_per_request",
        )
    return total


def _encode(vector: npt.NDArray[np.float32], as_floats: bool) -> str | list[float]:
    if as_floats:
        return [float(number) for number in vector]
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
