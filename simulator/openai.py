"""The wire of OpenAI: chat completions, embeddings and the list of models."""

import base64
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from promptstack.simulator.answers import (
    DEFAULT_DIMENSIONS,
    DIMENSIONS,
    tokens_in,
    vector_for,
)
from promptstack.simulator.ledger import billing_key
from promptstack.simulator.limits import LimitReached
from promptstack.simulator.openai_responses import RESPONSES, responses
from promptstack.simulator.requests import (
    GenerationRequest,
    is_refused,
    known,
    make,
    required,
    text_of,
)
from promptstack.simulator.streams import of_chat
from promptstack.simulator.wire import Answer, LimitStatus, ProviderRequest, Refusal, Wire

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"
MODELS = ("gpt-5-mini", "text-embedding-3-small", "text-embedding-3-large")

MOST_INPUTS = 2_048
MOST_TOKENS = 300_000
MOST_TOKENS_PER_INPUT = 8_192

_TYPES = {401: "invalid_request_error", 429: "requests", 503: "service_unavailable"}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def refuse(refusal: Refusal, request_id: str) -> Mapping[str, Any]:
    """Make an error body. Some codes are their own type, as at OpenAI."""
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    kind = _TYPES.get(refusal.status, kind)
    if refusal.code in {"insufficient_quota", "max_tokens_per_request"}:
        kind = refusal.code
    if isinstance(refusal, LimitReached) and refusal.dimension.endswith("tokens"):
        kind = "tokens"
    code = refusal.code or _CODES.get(refusal.status)
    return {"error": {"message": refusal.message, "type": kind, "param": None, "code": code}}


def chat(request: ProviderRequest) -> Answer:
    """Answer one chat completion."""
    generation = _request(request.body)
    output = make(generation, request.fault)
    message: dict[str, Any] = {"role": "assistant", "content": output.text, "refusal": None}
    finish_reason = "length" if output.is_cut else "stop"
    if output.arguments is not None:
        function = {"name": generation.tool, "arguments": json.dumps(output.arguments)}
        call = {"id": "call_simulated", "type": "function", "function": function}
        message |= {"content": None, "tool_calls": [call]}
        finish_reason = "tool_calls"
    if is_refused(request):
        message |= {"content": None, "refusal": "I can't help with that."}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    answer = {
        "id": "chatcmpl-simulated",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": generation.model,
        "choices": [] if request.fault.kind == "wrong_count" else [choice],
        "usage": {
            "prompt_tokens": output.input_tokens,
            "prompt_tokens_details": {"cached_tokens": output.cached_tokens},
            "completion_tokens": output.output_tokens,
            "total_tokens": output.input_tokens + output.output_tokens,
        },
    }
    with_usage = (request.body.get("stream_options") or {}).get("include_usage") is True
    return Answer(
        answer,
        billed=(billing_key(CHAT, generation.model, "\n".join(generation.prompts)),),
        input_tokens=output.input_tokens,
        output_tokens=output.output_tokens,
        stream=of_chat(answer, with_usage=with_usage) if request.body.get("stream") else None,
    )


def embeddings(request: ProviderRequest) -> Answer:
    """Answer one embedding request."""
    body, fault = request.body, request.fault
    model, given = known(required(body, "model", str)), required(body, "input", str | list)
    inputs = [given] if isinstance(given, str) or _are_token_ids(given) else given
    spent = _check_inputs(inputs)
    texts = [_as_text(one) for one in inputs]
    dimensions = body.get("dimensions") or DIMENSIONS.get(model, DEFAULT_DIMENSIONS)
    vectors = [vector_for(model, text, dimensions) for text in texts]
    if fault.kind == "nan":
        vectors[0][0] = np.nan
    if fault.kind == "short":
        vectors = [vector[:-1] for vector in vectors]
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


def models(request: ProviderRequest) -> Answer:
    """List the models."""
    return Answer({"object": "list", "data": [_model(name) for name in MODELS]})


def model(request: ProviderRequest) -> Answer:
    """Describe one model, whose name may be any that is known."""
    return Answer(_model(known(request.path["name"])))


def _model(name: str) -> Mapping[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "simulator"}


def limit_headers(limits: Mapping[str, LimitStatus]) -> Mapping[str, str]:
    """Make the headers that OpenAI sends with every answer."""
    headers = {}
    for name, status in limits.items():
        headers[f"x-ratelimit-limit-{name}"] = str(status.limit)
        headers[f"x-ratelimit-remaining-{name}"] = str(status.remaining)
        headers[f"x-ratelimit-reset-{name}"] = f"{status.reset_seconds:.3f}s"
    return headers


OPENAI = Wire(
    endpoints={
        ("POST", CHAT): chat,
        ("POST", RESPONSES): responses,
        ("POST", EMBEDDINGS): embeddings,
        ("GET", "/v1/models/{name}"): model,
    },
    refuse=refuse,
    limit_headers=limit_headers,
)


def _request(body: Mapping[str, Any]) -> GenerationRequest:
    model, turns = known(required(body, "model", str)), required(body, "messages", list)
    if not turns:
        raise Refusal(400, "'messages' is too short.", "invalid_value")
    tools = body.get("tools") or []
    calls = tools and body.get("tool_choice") != "none" and turns[-1].get("role") != "tool"
    tool = tools[0]["function"] if calls else None
    form = body.get("response_format") or {}
    return GenerationRequest(
        model=model,
        prompts=[text_of(turn.get("content")) for turn in turns],
        most_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
        schema=(form.get("json_schema") or {}).get("schema"),
        tool=tool["name"] if tool else None,
        tool_schema=tool.get("parameters") if tool else None,
    )


def _are_token_ids(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(type(one) is int for one in given)


def _as_text(given: Any) -> Any:
    """A text for token ids, with as many tokens: the simulator has no tokenizer."""
    return "".join(f"{one % 10_000:04}" for one in given) if _are_token_ids(given) else given


def _check_inputs(texts: list[Any]) -> int:
    """Return the tokens of all texts, or refuse them as OpenAI does."""
    texts = [_as_text(one) for one in texts]
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


def _encode(vector: npt.NDArray[np.float32], as_floats: bool) -> str | npt.NDArray[np.float32]:
    return vector if as_floats else base64.b64encode(vector.astype("<f4").tobytes()).decode()
