"""Turns the body of a request for a message into a generation's input and parameters.

What can't be handed on to every provider is refused by its name: nothing that would change an
answer is dropped. Marks for the provider's cache change only what it costs, and are left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from promptstack.services.errors import InvalidInput

HINTS = frozenset({"metadata", "service_tier", "cache_control", "inference_geo"})
"""Fields that change no answer."""
CHOICES: Mapping[str, str] = {"auto": "auto", "any": "required", "none": "none"}
IN_TEXT = frozenset({"type", "text", "cache_control", "citations"})
"""What a block of text may have."""


def generation_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a generation, without provider and model. Raises `InvalidInput`.

    Fields that only Anthropic knows are its `options`.
    """
    given = {name: value for name, value in body.items() if value is not None and name not in HINTS}
    for ours in ("model", "stream"):
        given.pop(ours, None)
    messages = given.pop("messages", None)
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("The request has no messages.", pointer="/messages")
    how: dict[str, Any] = {"messages": _turns(messages)}
    if "system" in given:
        system = _text(given.pop("system"), "/system")
        how |= {"system": system} if system else {}
    for name, ours in (("max_tokens", "max_tokens"), ("temperature", "temperature")):
        if name in given:
            how[ours] = given.pop(name)
    if "stop_sequences" in given:
        how["stop"] = given.pop("stop_sequences")
    if "tools" in given:
        how["tools"] = [
            _tool(tool, at) for at, tool in enumerate(_list(given.pop("tools"), "/tools"))
        ]
    if "tool_choice" in given:
        how["tool_choice"] = _choice(given.pop("tool_choice"))
    schema = _schema(given)
    if schema is not None:
        how["json_schema"] = schema
    return {**how, "options": given} if given else how


def _turns(messages: Sequence[Any]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        place = f"/messages/{at}"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in {"user", "assistant", "system"}:
            raise InvalidInput(
                "A message's role is user, assistant or system.", pointer=f"{place}/role"
            )
        content = message.get("content")
        if isinstance(content, str):
            turns.append({"role": role, "content": content})
        else:
            turns += _of_blocks(role, _list(content, f"{place}/content"), f"{place}/content")
    return turns


def _of_blocks(role: str, blocks: Sequence[Any], place: str) -> list[dict[str, Any]]:
    """The turns that a message of blocks is: each result of a tool is one by itself."""
    turns: list[dict[str, Any]] = []
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for at, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, Mapping) else None
        where = f"{place}/{at}"
        if kind == "text":
            texts.append(_text([block], where))
        elif kind == "tool_use" and role == "assistant":
            call = {"id": block.get("id"), "name": block.get("name")}
            calls.append({**call, "arguments": block.get("input") or {}})
        elif kind == "tool_result" and role == "user":
            turns.append(_result(block, where))
        else:
            raise InvalidInput(
                f"A block of the type {str(kind)[:50]!r} of the role {role} can't be handed on: "
                "messages hold texts, calls of tools and their results.",
                pointer=f"{where}/type",
            )
    text = "\n".join(texts)
    if text or calls or not turns:
        turn: dict[str, Any] = {"role": role, "content": text}
        turns.append({**turn, "tool_calls": calls} if calls else turn)
    return turns


def _result(block: Mapping[str, Any], place: str) -> dict[str, Any]:
    content = block.get("content")
    text = "" if content is None else _text(content, f"{place}/content")
    if block.get("is_error"):
        text = f"Error: {text}"
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text}


def _text(content: Any, place: str) -> str:
    """Text, or blocks of text, each on a new line."""
    if isinstance(content, str):
        return content
    texts = []
    for at, block in enumerate(_list(content, place)):
        is_text = isinstance(block, Mapping) and block.get("type") == "text"
        if not is_text or not isinstance(block.get("text"), str) or set(block) - IN_TEXT:
            raise InvalidInput("Only text can be handed on here.", pointer=f"{place}/{at}")
        texts.append(block["text"])
    return "\n".join(texts)


def _tool(tool: Any, at: int) -> dict[str, Any]:
    place = f"/tools/{at}"
    if not isinstance(tool, Mapping):
        raise InvalidInput("A tool is an object.", pointer=place)
    if tool.get("type") not in {None, "custom"}:
        raise InvalidInput(
            f"The tool {str(tool['type'])[:50]!r} runs at Anthropic, and not everywhere; describe "
            "your own by `input_schema`.",
            pointer=f"{place}/type",
        )
    taken = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {}}
    for name in ("description", "strict"):
        if tool.get(name) is not None:
            taken[name] = tool[name]
    return taken


def _choice(choice: Any) -> str:
    given = choice if isinstance(choice, Mapping) else {}
    kind = str(given.get("type"))
    if given.get("disable_parallel_tool_use"):
        raise InvalidInput(
            "disable_parallel_tool_use can't be handed on; leave it out.",
            pointer="/tool_choice/disable_parallel_tool_use",
        )
    if kind == "tool":
        return str(given.get("name", ""))
    if kind not in CHOICES:
        raise InvalidInput(
            "tool_choice has the type auto, any, tool or none.", pointer="/tool_choice/type"
        )
    return CHOICES[kind]


def _schema(given: dict[str, Any]) -> Any:
    """Take the schema that the answer must meet."""
    config = given.get("output_config")
    form = config.get("format") if isinstance(config, Mapping) else None
    if not isinstance(config, Mapping) or form is None:
        return None
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        raise InvalidInput("The format is a json_schema.", pointer="/output_config/format")
    rest = {name: value for name, value in config.items() if name != "format"}
    del given["output_config"]
    given |= {"output_config": rest} if rest else {}
    return form.get("schema")


def _list(given: Any, place: str) -> list[Any]:
    if not isinstance(given, list):
        raise InvalidInput(f"This is a list, and no {type(given).__name__}.", pointer=place)
    return given
