"""OpenAI's Responses API."""

import json
import time
from collections.abc import Mapping
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
from promptstack.simulator.streams import of_response
from promptstack.simulator.wire import Answer, ProviderRequest, Refusal

RESPONSES = "/v1/responses"


def responses(request: ProviderRequest) -> Answer:
    """Answer one response."""
    generation = _request(request.body)
    output = make(generation, request.fault)
    part: dict[str, Any] = {"type": "output_text", "text": output.text}
    part |= {"annotations": [], "logprobs": []}
    if is_refused(request):
        part = {"type": "refusal", "refusal": "I can't help with that."}
    item: dict[str, Any] = {
        "id": "msg_simulated",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    if output.arguments is not None:
        item = {
            "id": "fc_simulated",
            "type": "function_call",
            "call_id": "call_simulated",
            "name": generation.tool,
            "arguments": json.dumps(output.arguments),
            "status": "completed",
        }
    answer = {
        "id": "resp_simulated",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if output.is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if output.is_cut else None,
        "instructions": request.body.get("instructions"),
        "metadata": request.body.get("metadata") or {},
        "model": generation.model,
        "output": [] if request.fault.kind == "wrong_count" else [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "temperature": request.body.get("temperature"),
        "top_p": request.body.get("top_p"),
        "usage": {
            "input_tokens": output.input_tokens,
            "input_tokens_details": {
                "cached_tokens": output.cached_tokens,
                "cache_write_tokens": 0,
            },
            "output_tokens": output.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": output.input_tokens + output.output_tokens,
        },
    }
    key = billing_key(RESPONSES, generation.model, "\n".join(generation.prompts))
    stream = of_response(answer) if request.body.get("stream") else None
    return Answer(answer, (key,), output.input_tokens, output.output_tokens, stream)


def _request(body: Mapping[str, Any]) -> GenerationRequest:
    model, given = known(required(body, "model", str)), required(body, "input", str | list)
    if not given:
        raise Refusal(400, "Missing required parameter: 'input'.", "missing_required_parameter")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    prompts = [body["instructions"]] if body.get("instructions") else []
    prompts += [text_of(item.get("content") or [item]) for item in items]
    tools = body.get("tools") or []
    answered = items[-1].get("type") == "function_call_output"
    calls = tools and body.get("tool_choice") != "none" and not answered
    tool = tools[0] if calls else None
    return GenerationRequest(
        model=model,
        prompts=prompts,
        most_tokens=body.get("max_output_tokens"),
        schema=((body.get("text") or {}).get("format") or {}).get("schema"),
        tool=tool["name"] if tool else None,
        tool_schema=tool.get("parameters") if tool else None,
    )
