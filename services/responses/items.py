"""Items of responses: what was handed in and what was answered, as turns and as items."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from uuid import UUID

from promptstack.services.openai.responses import call_item, output_items

REFERENCE = "item_reference"
ID_DIGITS = 32
"""Of the response in an item's id; the number of the item may follow."""


def answered_turns(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stored answer as a turn of a conversation."""
    turn: dict[str, Any] = {"role": "assistant", "content": result.get("text") or ""}
    calls = result.get("tool_calls")
    if calls:
        turn["tool_calls"] = list(calls)
    return [turn] if turn["content"] or calls else []


def referred(item: Any) -> str | None:
    """The id of the item to which an item of an input refers; None where it is an item itself."""
    if not isinstance(item, Mapping) or not isinstance(item.get("id"), str):
        return None
    is_reference = item.get("type") == REFERENCE or not item.keys() - {"id", "type"}
    return item["id"] if is_reference and item.get("type") in {None, REFERENCE} else None


def response_of(item_id: str) -> UUID | None:
    """The response in whose output an item is, by its id; None for no id of ours."""
    digits = item_id.partition("_")[2][:ID_DIGITS]
    try:
        found = UUID(hex=digits)
    except ValueError:
        return None
    return found if found.hex == digits else None


def output_item(item_id: str, one: UUID, result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The item of this id in the output of a response."""
    return next((item for item in output_items(one, result) if item["id"] == item_id), None)


def input_items(one: UUID, turns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The input of a response as items, in order."""
    return [
        {"id": f"{kind}_{one.hex}{number:05d}", **item}
        for number, (kind, item) in enumerate(_items(one, turns))
    ]


def _items(one: UUID, turns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for turn in turns:
        role, text = turn["role"], turn.get("content") or ""
        if role == "tool":
            kind = "function_call_output"
            output = {"type": kind, "call_id": turn["tool_call_id"], "output": text}
            yield "fco", {**output, "status": "completed"}
            continue
        if text:
            yield "msg", _message(role, text)
        for call in turn.get("tool_calls") or ():
            item = call_item(one, 0, {"arguments": {}, **call})
            del item["id"]
            yield "fc", item


def _message(role: str, text: str) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "input_text", "text": text}
    if role == "assistant":
        content = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "status": "completed", "role": role, "content": [content]}
