"""The wire of Anthropic: messages, the count of tokens and the list of models."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from promptstack.simulator.ledger import billing_key
from promptstack.simulator.requests import (
    GenerationRequest,
    is_refused,
    known,
    make,
    required,
    text_of,
)
from promptstack.simulator.streams import of_message
from promptstack.simulator.wire import Answer, LimitStatus, ProviderRequest, Refusal, Wire

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
MODELS = ("claude-haiku-4-5", "claude-sonnet-4-5")

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def refuse(refusal: Refusal, request_id: str) -> Mapping[str, Any]:
    """Make an error body."""
    status, message = refusal.status, refusal.message
    if refusal.code == "insufficient_quota":
        message = "Your credit balance is too low to access the Anthropic API."
    if refusal.code == "context_length_exceeded":
        message = "prompt is too long: 250000 tokens > 200000 maximum"
    error = {"type": _TYPES.get(status, "api_error"), "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def limit_headers(limits: Mapping[str, LimitStatus]) -> Mapping[str, str]:
    """Make the headers that Anthropic sends with every answer."""
    headers = {}
    now = datetime.now(UTC)
    for name, status in limits.items():
        base = f"anthropic-ratelimit-{name.replace('_', '-')}"
        full_at = now + timedelta(seconds=status.reset_seconds)
        headers[f"{base}-limit"] = str(status.limit)
        headers[f"{base}-remaining"] = str(status.remaining)
        headers[f"{base}-reset"] = full_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


def messages(request: ProviderRequest) -> Answer:
    """Answer one message."""
    body = request.body
    generation = _request(body)
    if required(body, "max_tokens", int) < 1:
        raise Refusal(400, "max_tokens: must be at least 1")
    output = make(generation, request.fault)
    content: list[dict[str, Any]] = [{"type": "text", "text": output.text}]
    stop_reason = "max_tokens" if output.is_cut else "end_turn"
    if output.arguments is not None:
        call = {"type": "tool_use", "id": "toolu_simulated", "name": generation.tool}
        content, stop_reason = [{**call, "input": output.arguments}], "tool_use"
    if is_refused(request):
        content, stop_reason = [], "refusal"
    answer = {
        "id": "msg_simulated",
        "type": "message",
        "role": "assistant",
        "model": generation.model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": output.input_tokens - output.cached_tokens,
            "cache_read_input_tokens": output.cached_tokens,
            "cache_creation_input_tokens": 0,
            "output_tokens": output.output_tokens,
        },
    }
    if request.fault.kind == "wrong_count":
        del answer["content"]
    return Answer(
        answer,
        billed=(billing_key(MESSAGES, generation.model, "\n".join(generation.prompts)),),
        input_tokens=output.input_tokens,
        output_tokens=output.output_tokens,
        stream=of_message(answer) if body.get("stream") else None,
    )


def count_tokens(request: ProviderRequest) -> Answer:
    """Count, which is free."""
    return Answer({"input_tokens": make(_request(request.body), request.fault).input_tokens})


def models(request: ProviderRequest) -> Answer:
    """List the models."""
    created = datetime(2025, 10, 1, tzinfo=UTC).isoformat()
    listed = [
        {"id": name, "type": "model", "display_name": name, "created_at": created}
        for name in MODELS
    ]
    edges = {"first_id": MODELS[0], "last_id": MODELS[-1], "has_more": False}
    return Answer({"data": listed, **edges})


ANTHROPIC = Wire(
    endpoints={("POST", MESSAGES): messages, ("POST", COUNT): count_tokens},
    refuse=refuse,
    limit_headers=limit_headers,
    request_id_header="request-id",
)


def _request(body: Mapping[str, Any]) -> GenerationRequest:
    model, turns = known(required(body, "model", str)), required(body, "messages", list)
    if not turns:
        raise Refusal(400, "messages: at least one message is required")
    if any(turn.get("role") not in {"user", "assistant"} for turn in turns):
        raise Refusal(400, "messages: Unexpected role.")
    system = text_of(body.get("system"))
    choice = (body.get("tool_choice") or {}).get("type", "auto")
    tools = body.get("tools") or []
    # As most models do: a tool is called once, and its result is then talked about.
    answered = "tool_result" in str(turns[-1].get("content"))
    tool = tools[0] if tools and choice != "none" and not answered else None
    schema = ((body.get("output_config") or {}).get("format") or {}).get("schema")
    return GenerationRequest(
        model=model,
        prompts=[*([system] if system else []), *(text_of(turn["content"]) for turn in turns)],
        most_tokens=body.get("max_tokens"),
        schema=schema,
        tool=tool["name"] if tool else None,
        tool_schema=tool["input_schema"] if tool else None,
    )
