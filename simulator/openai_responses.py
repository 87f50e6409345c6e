"""OpenAI's Responses API."""

import json
import time
from collections.abc import Mapping
from typing import Any

from promptstack.simulator.ledger import billing_key
from promptstack.simulator.requests import Asked, is_refused, known, make, required, text_of
from promptstack.simulator.wire import Answer, Ask, Refusal

RESPONSES = "/v1/responses"


def responses(ask: Ask) -> Answer:
    """Answer one response."""
    asked = _asked(ask.body)
    made = make(asked, ask.fault)
    part: dict[str, Any] = {"type": "output_text", "text": made.text, "annotations": []}
    if is_refused(ask):
        part = {"type": "refusal", "refusal": "I can't help with that."}
    item: dict[str, Any] = {
        "id": "msg_simulated",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }
    if made.arguments is not None:
        item = {
            "id": "fc_simulated",
            "type": "function_call",
            "call_id": "call_simulated",
            "name": asked.tool,
            "arguments": json.dumps(made.arguments),
            "status": "completed",
        }
    answer = {
        "id": "resp_simulated",
        "object": "response",
        "created_at": int(time.time()),
        "status": "incomplete" if made.is_cut else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if made.is_cut else None,
        "model": asked.model,
        "output": [] if ask.fault.kind == "wrong_count" else [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": made.input_tokens,
            "input_tokens_details": {"cached_tokens": made.cached_tokens},
            "output_tokens": made.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": made.input_tokens + made.output_tokens,
        },
    }
    key = billing_key(RESPONSES, asked.model, "\n".join(asked.prompts))
    return Answer(answer, (key,), made.input_tokens, made.output_tokens)


def _asked(body: Mapping[str, Any]) -> Asked:
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
    return Asked(
        model=model,
        prompts=prompts,
        most_tokens=body.get("max_output_tokens"),
        schema=((body.get("text") or {}).get("format") or {}).get("schema"),
        tool=tool["name"] if tool else None,
        tool_schema=tool.get("parameters") if tool else None,
    )
