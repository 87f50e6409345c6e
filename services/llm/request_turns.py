"""Turns messages, tools and calls as OpenAI's clients write them into our form.

Only our form is stored, and each provider's request is made from it. What not every provider
supports is refused by name; nothing that a model would see is dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from promptstack.services.validation.json_text import load_json

TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""The types of content parts that are text, and the field that holds it."""
ABOUT_THE_ANSWER = frozenset({"annotations", "index"})
"""Fields that servers add to a message and that clients need not send back."""
NOT_TAKEN = frozenset(
    {"audio", "cache_control", "function_call", "prefix", "reasoning", "reasoning_content"}
    | {"thinking_blocks", "weight"}
)
MAX_ARGUMENT_VALUES = 100_000
"""In all arguments of a conversation that are JSON in a string, which nothing else counts."""
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A JSON string. An unclosed one matches to the end, so the search stays linear."""


def turn_of(given: Any) -> Any:
    """A turn in our form. Null counts as missing; `developer` is OpenAI's new name for `system`."""
    if isinstance(given, BaseModel):  # also a message of OpenAI's SDK
        given = given.model_dump()
    if not isinstance(given, Mapping):
        return given
    # Servers write "" or [] for nothing.
    optional = NOT_TAKEN | {"refusal"}
    turn = {name: value for name, value in _there(given).items() if value or name not in optional}
    odd = next((name for name in sorted(NOT_TAKEN) if name in turn), None)
    if odd is not None:
        raise ValueError(f"{odd} can't be handed on to a provider; leave it out")
    if turn.get("role") == "developer":
        turn["role"] = "system"
    if isinstance(turn.get("content"), list | tuple):
        turn["content"] = _text_of(turn["content"])
    refusal = turn.pop("refusal", None)
    if refusal is not None and turn.get("content"):
        raise ValueError("a turn has either content or a refusal")
    return turn if refusal is None else {**turn, "content": refusal}


def call_of(given: Any) -> Any:
    """A tool call in our form. Its arguments may be JSON in a string."""
    if not isinstance(given, Mapping):
        return given
    call = _flat(given)
    if isinstance(call.get("arguments"), str):
        call["arguments"] = _arguments(call["arguments"])
    return call


def tool_of(given: Any) -> Any:
    """A tool in our form. Its fields may be in an object `function`."""
    return _flat(given) if isinstance(given, Mapping) else given


def tool_choice_of(given: Any) -> Any:
    """The tool to call: its name, or an object with its name."""
    if not isinstance(given, Mapping):
        return given
    return _flat(given).get("name", "")


def few_values(turns: Any) -> Any:
    """Raise `ValueError` where the arguments of calls hold too many values.

    They are counted before they are parsed: parsed, they may take fifty times their length.
    """
    left = MAX_ARGUMENT_VALUES
    for turn in turns if isinstance(turns, list | tuple) else ():
        calls = turn.get("tool_calls") if isinstance(turn, Mapping) else None
        for call in calls if isinstance(calls, list | tuple) else ():
            text = _arguments_text(call)
            found = _signs(text)
            left -= found if found <= left else _signs(_STRING.sub("", text))
            if left < 0:
                raise ValueError(
                    f"the arguments of calls hold more than {MAX_ARGUMENT_VALUES:,} values"
                )
    return turns


def _there(given: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in given.items()
        if value is not None and name not in ABOUT_THE_ANSWER
    }


def _flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a function, be they in the object itself or in `function`."""
    whole = _there(given)
    kind = whole.pop("type", "function")
    if kind != "function":
        raise ValueError("only tools of the type function can be handed on to a provider")
    inner = whole.pop("function", None)
    if inner is None:
        return whole
    if not isinstance(inner, Mapping):
        raise ValueError("function must be an object")  # noqa: TRY004 - pydantic takes no other
    inner = _there(inner)
    if not whole.keys().isdisjoint(inner):
        raise ValueError("what a function is stands beside function and in it; keep one")
    return whole | inner


def _text_of(parts: Any) -> str:
    """Join the text parts of a content by newlines, as servers do for models that take one text."""
    texts = []
    for part in parts:
        name = TEXTS.get(str(part.get("type"))) if isinstance(part, Mapping) else None
        if name is None or not isinstance(part.get(name), str):
            raise ValueError("only text can be handed on; content has a part of another kind")
        beside = {other for other in part if part[other]} - {"type", name, "annotations"}
        if beside:
            raise ValueError("a part of content has more than its text; leave the rest out")
        texts.append(part[name])
    return "\n".join(texts)


def _arguments(text: str) -> Any:
    try:
        made = load_json(text.encode() or b"{}", "A call of a tool")
    except ValueError:
        made = None
    if not isinstance(made, dict):
        raise ValueError("the arguments of a call must be a JSON object")  # noqa: TRY004 - as above
    return made


def _arguments_text(call: Any) -> str:
    for holder in (call, call.get("function") if isinstance(call, Mapping) else None):
        found = holder.get("arguments") if isinstance(holder, Mapping) else None
        if isinstance(found, str):
            return found
    return ""


def _signs(text: str) -> int:
    """Count the signs that come before values in JSON."""
    return sum(map(text.count, ",:[{"))
