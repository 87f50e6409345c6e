"""Turns the bodies of requests to OpenAI's endpoints into the inputs and parameters of a run.

What a run does not support is refused: nothing that would change an answer is dropped.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

API, RESPONSES = "api", "responses"
HONOURED_ONLY_AS = {
    "n": (1, "an item has one answer"),
    "stream": (False, "answers are kept whole"),
    "background": (False, "a run is in the background already"),
    "logprobs": (False, "they are not kept"),
    "top_logprobs": (0, "they are not kept"),
    "modalities": (["text"], "only text is kept"),
    "audio": (None, "only text is kept"),
    "functions": ([], "write tools"),
    "function_call": (None, "write tool_choice"),
    "previous_response_id": (None, "an item has no answer before it. Write the turns before it"),
}
"""The only supported value of each of these fields, and why."""
HINTS = frozenset(
    {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    | {"safety_identifier", "user"}
)
"""Fields that change no answer: a provider that doesn't know them goes without."""
FINE_IN_EMBEDDINGS = frozenset({"user"})
"""Fields that change nothing."""
MAX_DIMENSIONS = 16_000
"""As many as pgvector stores."""
ENCODINGS = ("float", "base64")
"""How vectors are written; the first unless said."""


class NotHonoured(ValueError):
    """A body asks for what is not supported. The message is half a sentence: what, and why."""

    def __init__(self, message: str, field: str = "") -> None:
        """Take the field at fault, where it is one."""
        super().__init__(message)
        self.field = field


@dataclass(frozen=True)
class Asked:
    """What one request asks for."""

    record: dict[str, Any]
    """Its input, as a record of a source."""
    how: dict[str, Any] = field(default_factory=dict)
    """Its parameters, with the names of a run's."""


def _chat(given: dict[str, Any]) -> Asked:
    turns = given.pop("messages", None)
    if turns is None:
        raise NotHonoured("has no messages", "messages")
    how = _generation(given, ("max_completion_tokens", "max_tokens"))
    stop = _of_type(given.pop("stop", []), (str, list), "stop")
    if stop:
        how["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    if "seed" in given:
        how["seed"] = given.pop("seed")
    _take_format(given, "response_format", how, lambda form: form.get("json_schema"))
    return Asked({"messages": turns}, _with_options(how, given))


def _responses(given: dict[str, Any]) -> Asked:
    asked, said = given.pop("input", None), given.pop("instructions", None)
    if asked is None:
        raise NotHonoured("has no input", "input")
    how = _generation(given, ("max_output_tokens",))
    text = _of_type(given.pop("text", {}), dict, "text")
    text = {name: value for name, value in text.items() if value is not None}
    _take_format(text, "format", how, lambda form: form)
    how = _with_options(how, {**given, **({"text": text} if text else {}), API: RESPONSES})
    first = [] if said is None else [{"role": "system", "content": said}]
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    return Asked({"messages": [*first, *_turns(asked)]}, how)


def _embeddings(given: dict[str, Any]) -> Asked:
    text = given.pop("input", None)
    if isinstance(text, list) and len(text) == 1:
        [text] = text
    if not isinstance(text, str):
        raise NotHonoured(
            "must have one text as input: a line has one vector. Write a line for each text; token "
            "ids are no text",
            "input",
        )
    how = _model(given)
    if "dimensions" in given:
        size = given.pop("dimensions")
        if type(size) is not int or not 1 <= size <= MAX_DIMENSIONS:
            raise NotHonoured(
                f"has dimensions that are no whole number from 1 to {MAX_DIMENSIONS}", "dimensions"
            )
        how["dimensions"] = size
    encoding = given.pop("encoding_format", ENCODINGS[0])
    if encoding not in ENCODINGS:
        raise NotHonoured(
            "has an encoding_format that is neither float nor base64", "encoding_format"
        )
    if encoding != ENCODINGS[0]:
        how["encoding_format"] = encoding
    other = sorted(given.keys() - FINE_IN_EMBEDDINGS)
    if other:
        raise NotHonoured(
            f"has {_names(other)}, which an embedding can't honour; leave it out", other[0]
        )
    return Asked({"text": text}, how)


ENDPOINTS: Mapping[str, tuple[str, Callable[[dict[str, Any]], Asked]]] = {
    "/chat/completions": ("generation", _chat),
    "/responses": ("generation", _responses),
    "/embeddings": ("embedding", _embeddings),
}


def endpoint_of(url: str) -> str | None:
    """The endpoint with which a URL ends, whatever the version of the API."""
    return next((name for name in ENDPOINTS if url.rstrip("/").endswith(name)), None)


def kind_of_run(endpoint: str) -> str:
    """The kind of run for an endpoint."""
    return ENDPOINTS[endpoint][0]


def asked_of(endpoint: str, body: Mapping[str, Any]) -> Asked:
    """What a body asks for; null counts as missing. Raises `NotHonoured`."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, (honoured, why) in HONOURED_ONLY_AS.items():
        if name in given and given.pop(name) != honoured:
            raise NotHonoured(f"asks for {name}; {why}", name)
    given.pop("stream_options", None)
    metadata = given.pop("metadata", None)
    asked = ENDPOINTS[endpoint][1](given)
    return asked if metadata is None else Asked({**asked.record, "metadata": metadata}, asked.how)


def _generation(given: dict[str, Any], longest: Sequence[str]) -> dict[str, Any]:
    """Take the parameters of any generation, whose names at OpenAI are ours."""
    own = ("temperature", "tools", "tool_choice")
    how = {**_model(given), **{name: given.pop(name) for name in own if name in given}}
    _of_type(how.get("tools", []), list, "tools")
    limits = [given.pop(name) for name in longest if name in given]
    if limits:
        if limits[1:] not in ([], limits[:1]):
            raise NotHonoured(
                "has max_tokens and max_completion_tokens that differ; keep one", longest[1]
            )
        how["max_tokens"] = limits[0]
    return how


def _model(given: dict[str, Any]) -> dict[str, Any]:
    return {"model": _of_type(given.pop("model"), str, "model")} if "model" in given else {}


def _of_type(value: Any, types: type | tuple[type, ...], name: str) -> Any:
    if not isinstance(value, types):
        raise NotHonoured(f"has a {name} of another type than it has", name)
    return value


def _take_format(
    given: dict[str, Any],
    name: str,
    how: dict[str, Any],
    schema_of: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Take a JSON schema; another format stays an option."""
    form = given.get(name)
    kind = form.get("type") if isinstance(form, Mapping) else None
    if form is None or kind == "json_object":
        return
    del given[name]
    if kind == "text":
        return
    described = schema_of(form) if kind == "json_schema" else None
    if not isinstance(described, Mapping) or not isinstance(described.get("schema"), Mapping):
        raise NotHonoured(
            f"has a {name} that is neither text nor json_object nor a JSON schema", name
        )
    if described.get("description"):
        raise NotHonoured(
            f"describes its {name} apart; write it as description into the schema", name
        )
    # Its name is a label. Answers are checked against the schema whether or not `strict` holds the
    # model to it, which it is wherever the schema allows that.
    how["json_schema"] = described["schema"]


def _with_options(how: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    return {**how, "options": rest} if rest else how


def _turns(items: Any) -> list[Any]:
    """Items of the Responses API as turns. Calls belong to the model's turn before them."""
    turns: list[Any] = []
    for item in items if isinstance(items, list) else ():
        kind = item.get("type", "message") if isinstance(item, Mapping) else None
        if kind == "message":
            turns.append(
                {name: item[name] for name in item if name not in {"type", "id", "status"}}
            )
        elif kind == "function_call_output":
            result = {"tool_call_id": item.get("call_id"), "content": item.get("output")}
            turns.append({"role": "tool", **result})
        elif kind == "function_call":
            call = {"name": item.get("name"), "arguments": item.get("arguments")}
            call["id"] = item.get("call_id")
            if not turns or turns[-1].get("role") != "assistant":
                turns.append({"role": "assistant"})
            turns[-1] = {**turns[-1], "tool_calls": [*turns[-1].get("tool_calls", ()), call]}
        else:
            raise NotHonoured(
                "has an input of another kind than messages, calls and their results", "input"
            )
    return turns


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)[:200]
