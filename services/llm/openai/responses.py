"""OpenAI's Responses API: makes the body of a request and reads an answer."""

from collections.abc import Iterator
from typing import Any

from promptstack.services.llm.openai.chat import (
    SCHEMA_NAME,
    names_tool,
    refusal_of,
    schema_of,
    usage_of,
    written,
)
from promptstack.services.llm.reading import Part, Said
from promptstack.services.llm.requests import GenerationRequest, Message
from promptstack.services.llm.tool_calls import tool_call

PATH = "/responses"


def body(request: GenerationRequest) -> dict[str, Any]:
    """The JSON of a request, without parameters that it does not set. OpenAI stores nothing."""
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


def read(answer: Part) -> Said:
    """Read an answer, and note what is malformed."""
    output = answer.parts("output")
    messages = [item for item in output if item.is_a("message", "content")]
    calls = [item for item in output if item.is_a("function_call", "arguments")]
    texts = [text for item in messages if (text := item.text("content")) is not None]
    reason = answer.part("incomplete_details").word("reason")
    refusals = [why for item in messages if (why := refusal_of(item)) is not None]
    refusals += ["content_filter"] if reason == "content_filter" else []
    return Said(
        text="".join(texts) if texts or (output and not messages) else None,
        usage=usage_of(answer, "input_tokens", "output_tokens"),
        model=answer.word("model"),
        finish_reason=_finish_reason(answer, reason),
        tool_calls=tuple(
            call
            for position, item in enumerate(calls)
            for call in tool_call(
                item, position, item.get("call_id") or item.get("id"), item.get("arguments")
            )
        ),
        refusal=refusals[0] if refusals else None,
    )


def _finish_reason(answer: Part, reason: str | None) -> str | None:
    if reason is not None:
        return {"max_output_tokens": "length"}.get(reason, reason)
    if answer.get("incomplete_details") is not None:
        return None
    status = answer.word("status") or "completed"
    return {"completed": "stop"}.get(status, status)


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
