"""A generation's request, the same for all wires, and the model's output."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from promptstack.simulator.answers import text_for, tokens_in
from promptstack.simulator.faults import Fault
from promptstack.simulator.schema import instance_of
from promptstack.simulator.wire import ProviderRequest, Refusal

MOST_CONTEXT = 1_048_576
"""Tokens of a prompt, whatever the model."""
CACHED_MARK = "[cached]"
"""A first turn that begins with it counts as in the provider's cache."""
UNFIT_MARK = "[unfit]"
"""A last turn that begins with it is answered with null, whatever the schema."""


@dataclass(frozen=True)
class GenerationRequest:
    """A generation, the same from all wires."""

    model: str
    prompts: Sequence[str]
    most_tokens: int | None = None
    schema: Mapping[str, Any] | None = None
    tool: str | None = None
    """The name of the tool to call, where there is one and it may be."""
    tool_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class GenerationOutput:
    """The model's output."""

    text: str
    arguments: Any
    """Of the tool's call; None where none is called."""
    is_cut: bool
    input_tokens: int
    cached_tokens: int
    output_tokens: int


def make(generation: GenerationRequest, fault: Fault) -> GenerationOutput:
    """Answer: the call of a tool, an instance of a schema, or a text.

    Raises `Refusal` of more than `MOST_CONTEXT`.
    """
    spent, arguments = sum(map(tokens_in, generation.prompts)), None
    if spent > MOST_CONTEXT:
        message = f"Your input of {spent} tokens exceeds the context window of {MOST_CONTEXT}."
        raise Refusal(400, message, "context_length_exceeded")
    if generation.tool is not None:
        text, arguments = "", instance_of(generation.tool_schema or {"type": "object"})
    elif generation.schema is not None:
        is_unfit = generation.prompts[-1].startswith(UNFIT_MARK)
        text = json.dumps(None if is_unfit else instance_of(generation.schema))
    else:
        text = text_for(generation.model, generation.prompts) + (
            "\0" if fault.kind == "nul" else ""
        )
    most, is_cut = generation.most_tokens, False
    if most is not None and most < tokens_in(text):
        text, is_cut = text.encode()[: 4 * most].decode(errors="ignore"), True
    is_cached = generation.prompts[0].startswith(CACHED_MARK)
    return GenerationOutput(
        text=text,
        arguments=arguments,
        is_cut=is_cut,
        input_tokens=spent,
        cached_tokens=tokens_in(generation.prompts[0]) if is_cached else 0,
        output_tokens=tokens_in(text if arguments is None else json.dumps(arguments)),
    )


def required(body: Mapping[str, Any], name: str, kind: Any) -> Any:
    """Return a field of a body. Raises `Refusal` where it is missing or of another type."""
    if name not in body:
        raise Refusal(400, f"Missing required parameter: '{name}'.", "missing_required_parameter")
    if not isinstance(body[name], kind):
        raise Refusal(400, f"Invalid type for '{name}'.", "invalid_type")
    return body[name]


def known(model: str) -> str:
    """Return a model's name. Raises `Refusal` for one that begins with `unknown`."""
    if model.startswith("unknown"):
        raise Refusal(404, f"The model '{model}' does not exist.", "model_not_found")
    return model


def text_of(content: object) -> str:
    """The text of a turn's content: a string, or blocks of which the text counts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    parts = [part for part in content if isinstance(part, dict)]
    return "".join(_text(part) for part in parts)


def _text(part: Mapping[str, Any]) -> str:
    if isinstance(part.get("text"), str):
        return str(part["text"])
    inner = part.get("content") or part.get("input") or part.get("output") or ""
    return inner if isinstance(inner, str) else json.dumps(inner)


def is_refused(request: ProviderRequest) -> bool:
    """Whether the model is to refuse to answer."""
    return request.fault.kind == "refused"
