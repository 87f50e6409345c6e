"""The body of OpenAI's Responses API, and what its answer says."""

from collections.abc import Iterator, Mapping
from typing import Any

from services.llm.openai_chat import (
    SCHEMA_NAME,
    Said,
    names_tool,
    optional,
    schema_of,
    tool_call,
    written,
)
from services.llm.requests import GenerationRequest, Message

PATH = "/responses"


def body(request: GenerationRequest) -> dict[str, Any]:
    """Make the JSON of a request, without what it leaves open. Nothing is kept at OpenAI."""
    fields: dict[str, Any] = {
        "model": request.model,
        "input": [item for turn in request.conversation() for item in _items(turn)],
        "temperature": request.temperature,
        "max_output_tokens": request.max_tokens,
        "store": False,
    }
    if request.json_schema is not None:
        schema = {"type": "json_schema", "name": SCHEMA_NAME, **schema_of(request.json_schema)}
        fields["text"] = {"format": schema}
    if request.tools:
        fields["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters_schema(),
                "strict": tool.strict,
            }
            for tool in request.tools
        ]
        choice = {"type": "function", "name": request.tool_choice}
        fields["tool_choice"] = choice if names_tool(request) else request.tool_choice
    return {name: value for name, value in fields.items() if value is not None}


def read(answer: Mapping[str, Any]) -> Said:
    """Read an answer. Raises what a wrong form leads to: `LookupError`, `TypeError` and such."""
    if answer.get("error"):
        raise ValueError("the answer holds an error")
    output = answer["output"]
    parts = [part for item in output if item["type"] == "message" for part in item["content"]]
    if not output:
        raise ValueError("there is no output")
    usage = answer.get("usage") or {}
    reason = (answer.get("incomplete_details") or {}).get("reason")
    refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
    if reason == "content_filter":
        refusals.append(reason)
    return Said(
        text="".join(part["text"] for part in parts if part["type"] == "output_text"),
        model=answer.get("model"),
        finish_reason={None: "stop", "max_output_tokens": "length"}.get(reason, str(reason)),
        input_tokens=optional(usage.get("input_tokens")),
        output_tokens=optional(usage.get("output_tokens")),
        cached_tokens=int((usage.get("input_tokens_details") or {}).get("cached_tokens") or 0),
        tool_calls=tuple(
            tool_call(item["call_id"], item["name"], item["arguments"])
            for item in output
            if item["type"] == "function_call"
        ),
        refusal=refusals[0] if refusals else None,
    )


def _items(turn: Message) -> Iterator[dict[str, Any]]:
    if turn.role == "tool":
        yield {
            "type": "function_call_output",
            "call_id": turn.tool_call_id,
            "output": turn.content,
        }
        return
    if turn.content:
        yield {"role": turn.role, "content": turn.content}
    for call in turn.tool_calls:
        yield {
            "type": "function_call",
            "call_id": call.id,
            "name": call.name,
            "arguments": written(call.arguments),
        }
