"""The body of OpenAI's chat completions, and what its answer says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from services.llm.requests import GenerationRequest, Message
from services.text import make_storable, make_storable_json

PATH = "/chat/completions"
SCHEMA_NAME = "answer"


@dataclass(frozen=True)
class Said:
    """An answer, in whichever form it came. Tokens are None where nothing was said of them."""

    text: str
    model: str | None
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int = 0
    tool_calls: tuple[dict[str, JsonValue], ...] = ()
    refusal: str | None = None


def body(request: GenerationRequest) -> dict[str, Any]:
    """Make the JSON of a request, without what it leaves open."""
    fields: dict[str, Any] = {
        "model": request.model,
        "messages": [_turn(turn) for turn in request.conversation()],
        "temperature": request.temperature,
        "max_completion_tokens": request.max_tokens,
        "stop": request.stop or None,
        "seed": request.seed,
    }
    if request.json_schema is not None:
        schema = {"name": SCHEMA_NAME, **schema_of(request.json_schema)}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.tools:
        fields["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters_schema(),
                    **({"strict": True} if tool.strict else {}),
                },
            }
            for tool in request.tools
        ]
        fields["tool_choice"] = (
            {"type": "function", "function": {"name": request.tool_choice}}
            if names_tool(request)
            else request.tool_choice
        )
    return {name: value for name, value in fields.items() if value is not None}


def read(answer: Mapping[str, Any]) -> Said:
    """Read an answer. Raises what a wrong form leads to: `LookupError`, `TypeError` and such."""
    choice = answer["choices"][0]
    message = choice["message"]
    usage = answer.get("usage") or {}
    finish_reason = choice.get("finish_reason") or "unknown"
    filtered = "content_filter" if finish_reason == "content_filter" else None
    return Said(
        text=message.get("content") or "",
        model=answer.get("model"),
        finish_reason=finish_reason,
        input_tokens=optional(usage.get("prompt_tokens")),
        output_tokens=optional(usage.get("completion_tokens")),
        cached_tokens=int((usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0),
        tool_calls=tuple(
            tool_call(call["id"], call["function"]["name"], call["function"]["arguments"])
            for call in message.get("tool_calls") or ()
        ),
        refusal=message.get("refusal") or filtered,
    )


def schema_of(schema: Mapping[str, JsonValue]) -> dict[str, Any]:
    """A schema as OpenAI wants it: strict where it is closed, which strictness asks for."""
    return {"schema": schema, "strict": schema.get("additionalProperties") is False}


def names_tool(request: GenerationRequest) -> bool:
    """Whether `tool_choice` is the name of a tool."""
    return request.tool_choice not in {None, "auto", "none", "required"}


def tool_call(id_: str, name: str, arguments: str) -> dict[str, JsonValue]:
    """A call of a tool.

    Arguments that are no JSON, as where `max_tokens` cut them, stay the text that they are: the
    answer is paid for, and asking again would pay once more for the same.
    """
    try:
        made = json.loads(arguments or "{}")
    except ValueError:
        made = arguments
    return {
        "id": make_storable(id_),
        "name": make_storable(name),
        "arguments": make_storable_json(made),
    }


def written(arguments: Mapping[str, JsonValue]) -> str:
    """Arguments of a call as models write them: without spaces, in their own characters."""
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


def optional(count: Any) -> int | None:
    """A count of tokens, where there is one."""
    return None if count is None else int(count)


def _turn(turn: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": turn.role, "content": turn.content}
    if turn.name is not None:
        fields["name"] = turn.name
    if turn.role == "tool":
        fields["tool_call_id"] = turn.tool_call_id
    if turn.tool_calls:
        fields["content"] = turn.content or None
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": written(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    return fields
