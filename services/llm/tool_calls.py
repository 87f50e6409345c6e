"""Reads the calls of tools in an answer."""

import json
from typing import Any

from pydantic import JsonValue

from promptstack.services.llm.reading import Part, kind_of
from promptstack.services.text import MAX_JSON_DEPTH, make_storable_json


def tool_call(
    part: Part, position: int, id_: Any, arguments: Any
) -> tuple[dict[str, JsonValue], ...]:
    """The tool call in a part, if there is one. A call without an id is numbered by position.

    Arguments that are not JSON, for example because `max_tokens` cut them off, stay a string: the
    answer is paid for, and asking again would pay for the same.
    """
    name = part.get("name")
    if not isinstance(name, str) or not name:
        part.odd("name", name)
        return ()
    if not isinstance(id_, str):
        part.notes.add(f"the id of a tool's call is {kind_of(id_)}")
    call = {
        "id": id_ if isinstance(id_, str) and id_ else f"call_{position}",
        "name": name,
        "arguments": _arguments(arguments),
    }
    stored: dict[str, JsonValue] = make_storable_json(call)
    if stored != call:
        part.notes.add("a tool's call holds what can't be stored")
    return (stored,)


def _arguments(value: Any) -> Any:
    made = {} if value is None or value == "" else value
    if isinstance(value, str) and value:
        try:
            made = json.loads(value, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            return value
    if not _is_deep(made):
        return made
    return value if isinstance(value, str) else json.dumps(made)


def _once(members: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(members)
    if len(made) < len(members):
        raise ValueError("a name stands twice in an object, and may mean either")
    return made


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_JSON_DEPTH):
        level = [inner for one in level for inner in _inner(one)]
        if not level:
            return False
    return True


def _inner(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
