"""OpenAI's chat completions: makes the body of a request and reads an answer."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from promptstack.services.llm.answers import Usage
from promptstack.services.llm.reading import Part, Said
from promptstack.services.llm.requests import GenerationRequest, Message
from promptstack.services.llm.tool_calls import tool_call

PATH = "/chat/completions"
SCHEMA_NAME = "answer"


def body(request: GenerationRequest) -> dict[str, Any]:
    """The JSON of a request, without parameters that it does not set."""
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


def read(answer: Part) -> Said:
    """Read an answer, and note what is malformed."""
    choices = answer.parts("choices")
    choice = choices[0] if choices else Part(None, answer.notes)
    message = choice.part("message", is_expected=True)
    calls = [(call.part("function"), call.get("id")) for call in message.parts("tool_calls")]
    if message.get("function_call") and not calls:  # the older form, with one call at most
        calls = [(message.part("function_call"), "call_0")]
    reason = choice.word("finish_reason")
    return Said(
        text=message.text("content"),
        value=message.get("content"),
        usage=usage_of(answer, "prompt_tokens", "completion_tokens"),
        model=answer.word("model"),
        finish_reason=reason,
        tool_calls=tuple(
            call
            for position, (function, id_) in enumerate(calls)
            for call in tool_call(function, position, id_, function.get("arguments"))
        ),
        refusal=refusal_of(message) or ("content_filter" if reason == "content_filter" else None),
    )


def usage_of(answer: Part, asked: str, made: str) -> Usage:
    """The tokens that an answer used; `asked` and `made` name the fields of input and output."""
    usage = answer.part("usage", is_expected=True)
    return Usage(
        input_tokens=usage.count(asked),
        output_tokens=usage.count(made),
        cached_tokens=usage.part(f"{asked}_details").count("cached_tokens", 0),
    )


def refusal_of(message: Part) -> str | None:
    """Why the model refused, in a field or in a part of the content; None where it did not."""
    content, found = message.get("content"), message.get("refusal")
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "refusal":
            found = found or part.get("refusal")
    if found and not isinstance(found, str):
        message.odd("refusal", found)
    return str(found) if found else None


def schema_of(schema: Mapping[str, JsonValue]) -> dict[str, Any]:
    """A schema for OpenAI. Strict mode requires that no other properties are allowed."""
    return {"schema": schema, "strict": schema.get("additionalProperties") is False}


def names_tool(request: GenerationRequest) -> bool:
    """Whether `tool_choice` is the name of a tool."""
    return request.tool_choice not in {None, "auto", "none", "required"}


def written(arguments: Mapping[str, JsonValue]) -> str:
    """The arguments of a call as models write them: without spaces, and not escaped."""
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


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
