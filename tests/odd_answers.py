"""Right answers of every wire, and odd ones made of them: any JSON value in any place."""

import base64
import copy
import gzip
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

Place = tuple[str | int, ...]
"""Where something stands in a JSON value: names of fields and positions."""


SAID = "The sky is blue."
CALL = {"name": "look", "arguments": {"color": "blue"}}
EMBEDDED = ["one", "two", "three"]
VECTORS = [[1.0, 2.0], [0.5, -3.0], [4.0, 0.25]]


@dataclass(frozen=True)
class OddAnswer:
    """An answer, and what was done to it."""

    body: Any
    touched: tuple[Place, ...] = ()
    """The places of which it isn't what a provider says."""
    head: Mapping[str, str] = field(default_factory=dict)
    encode: Callable[[str], bytes] = str.encode
    is_chunked: bool = False
    is_zipped: bool = False
    status: int = 200

    def wire(self) -> bytes:
        """The bytes of its HTTP."""
        raw = self.encode(DEEP.sub(_nested, json.dumps(self.body)))
        head = {"content-type": "application/json", **self.head}
        if self.is_zipped:
            raw, head["content-encoding"] = gzip.compress(raw, 1), "gzip"
        if self.is_chunked:
            head["transfer-encoding"] = "chunked"
            cut = len(raw) // 2 + 1
            parts = [part for part in (raw[:cut], raw[cut:]) if part]
            raw = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
        else:
            head["content-length"] = str(len(raw))
        lines = [f"{name}: {value}" for name, value in head.items()]
        return "\r\n".join([f"HTTP/1.1 {self.status} Any", *lines, "", ""]).encode() + raw

    def spares(self, places: Sequence[Place]) -> bool:
        """Whether all that stands in these places, and around them, is as it was."""
        return not any(
            touched[: len(place)] == place or place[: len(touched)] == touched
            for touched in self.touched
            for place in places
        )


NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, 0.5, -0.0])
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "0", "1", "12", "-1", "\x00", "\ud800", "a\nb", "x" * 10_000, "true", "null", "[]", "é"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


DEEP = re.compile(r'"@nested (\d+)@"')
"""Stands for a list in a list, and so on, so deep that Python can't write it."""


def _nested(found: re.Match[str]) -> str:
    depth = int(found[1])
    return "[" * depth + "1" + "]" * depth


HEADS: Sequence[Mapping[str, str]] = (
    {},
    {"content-type": "text/plain"},
    {"content-type": "text/html; charset=nonsense"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": ";;;"},
    {"content-type": "application/json; charset=rot13"},
    {"x-request-id": "r" * 9_000},
    {"x-long": "y" * 60_000},
    {"set-cookie": "c=" + "z" * 20_000},
    {f"x-many-{number}": "m" for number in range(300)},
    {"x-ratelimit-limit-requests": "NaN", "x-ratelimit-remaining-requests": "-1"},
    {"x-ratelimit-limit-tokens": "9" * 400, "x-ratelimit-remaining-tokens": "1e999"},
    {"retry-after": "inf", "request-id": "\x7f\x01"},
)
ENCODINGS: Sequence[Callable[[str], bytes]] = (
    str.encode,
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("utf-32"),
    lambda text: b"\r\n\t " + text.encode() + b"\n\n",
)


def places_in(value: Any, at: Place = ()) -> list[Place]:
    """Every place in a JSON value, the whole of it first."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:8]))
    return [at, *(place for name, one in inner for place in places_in(one, (*at, name)))]


@st.composite
def odd_answers(draw: st.DrawFn, right: Any, most: int = 3) -> OddAnswer:
    """A right answer in which some places hold anything, or nothing, and others are added."""
    body, touched = copy.deepcopy(right), []
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.sampled_from(places_in(body)))
        body, where = _touched(draw, body, place)
        touched.append(where)
    answer = OddAnswer(body, tuple(touched))
    if draw(st.integers(0, 3)) == 0:
        answer = replace(
            answer,
            head=draw(st.sampled_from(HEADS)),
            encode=draw(st.sampled_from(ENCODINGS)),
            is_chunked=draw(st.booleans()),
            is_zipped=draw(st.booleans()),
        )
    return answer


def _touched(draw: st.DrawFn, body: Any, place: Place) -> tuple[Any, Place]:
    anything = ANYTHING | st.sampled_from([f"@nested {depth}@" for depth in (40, 160, 900, 9_000)])
    if not place:
        return (draw(anything), ()) if draw(st.integers(0, 4)) == 0 else (body, ("nowhere",))
    around: Any = body
    for step in place[:-1]:
        around = around[step]
    last: Any = place[-1]
    match draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "wrap", "twice"])):
        case "replace":
            around[last] = draw(anything)
        case "drop":
            del around[last]
            if isinstance(around, list):
                place = place[:-1]
        case "add" if isinstance(around, dict):
            name = draw(st.sampled_from(["error", "type", "x"]) | TEXTS)
            around.setdefault(name, draw(anything))
            place = (*place[:-1], name)
        case "wrap":
            around[last] = [around[last]]
        case "twice" if isinstance(around, list):
            around.insert(0, around[last])
            place = place[:-1]
        case _:
            place = ("nowhere",)
    return body, place


def base64_of(vector: Sequence[float]) -> str:
    """A vector as OpenAI sends it."""
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()


@dataclass(frozen=True)
class Wire:
    """A way to ask, its right answer, and where in it stands what was paid for."""

    provider: str
    right: dict[str, Any]
    paid: tuple[Place, ...]
    """With what says what kind of thing it is."""
    usage: Place
    options: tuple[tuple[str, str], ...] = ()
    wants: str = "text"


def chat(message: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-5-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "refusal": None, **message},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 3,
            "total_tokens": 8,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


def responses(*output: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "resp_1",
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "model": "gpt-5-mini",
        "output": list(output),
        "usage": {
            "input_tokens": 5,
            "output_tokens": 3,
            "input_tokens_details": {"cached_tokens": 2},
        },
    }


def message(*content: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": list(content),
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "cache_read_input_tokens": 2, "output_tokens": 3},
    }


def gemini(*parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "candidates": [
            {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", "index": 0}
        ],
        "usageMetadata": {
            "promptTokenCount": 5,
            "candidatesTokenCount": 3,
            "totalTokenCount": 8,
            "cachedContentTokenCount": 2,
        },
        "modelVersion": "gemini-2.5-flash",
        "responseId": "r-1",
    }


FUNCTION = {"name": "look", "arguments": '{"color": "blue"}'}
CHAT_CALL = ("choices", 0, "message", "tool_calls", 0, "function")
GEMINI_PART = ("candidates", 0, "content", "parts", 0)
RESPONSES = (("api", "responses"),)
WIRES = {
    "chat": Wire(
        "openai", chat({"content": SAID}), (("choices", 0, "message", "content"),), ("usage",)
    ),
    "chat-parts": Wire(
        "openai",
        chat({"content": [{"type": "text", "text": SAID[:7]}, {"type": "text", "text": SAID[7:]}]}),
        (("choices", 0, "message", "content"),),
        ("usage",),
    ),
    "chat-call": Wire(
        "openai",
        chat(
            {"content": None, "tool_calls": [{"id": "a", "type": "function", "function": FUNCTION}]}
        ),
        ((*CHAT_CALL, "name"), (*CHAT_CALL, "arguments")),
        ("usage",),
        wants="call",
    ),
    "responses": Wire(
        "openai",
        responses(
            {"type": "reasoning", "summary": []},
            {"type": "message", "content": [{"type": "output_text", "text": SAID}]},
        ),
        (
            ("output", 1, "content", 0, "text"),
            ("output", 1, "content", 0, "type"),
            ("output", 1, "type"),
            ("output", 0, "type"),
        ),
        ("usage",),
        RESPONSES,
    ),
    "responses-call": Wire(
        "openai",
        responses({"type": "function_call", "call_id": "a", **FUNCTION}),
        (("output", 0, "name"), ("output", 0, "arguments"), ("output", 0, "type")),
        ("usage",),
        RESPONSES,
        wants="call",
    ),
    "anthropic": Wire(
        "anthropic",
        message({"type": "text", "text": SAID}),
        (("content", 0, "text"), ("content", 0, "type")),
        ("usage",),
    ),
    "anthropic-call": Wire(
        "anthropic",
        message({"type": "tool_use", "id": "a", "name": "look", "input": {"color": "blue"}}),
        (("content", 0, "name"), ("content", 0, "input"), ("content", 0, "type")),
        ("usage",),
        wants="call",
    ),
    "gemini": Wire(
        "gemini",
        gemini({"text": SAID}),
        ((*GEMINI_PART, "text"), (*GEMINI_PART, "thought")),
        ("usageMetadata",),
    ),
    "gemini-call": Wire(
        "gemini",
        gemini({"functionCall": {"name": "look", "args": {"color": "blue"}}}),
        ((*GEMINI_PART, "functionCall", "name"), (*GEMINI_PART, "functionCall", "args")),
        ("usageMetadata",),
        wants="call",
    ),
    "openai-vectors": Wire(
        "openai",
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 1, "embedding": VECTORS[1]},
                {"object": "embedding", "index": 0, "embedding": base64_of(VECTORS[0])},
                {"object": "embedding", "index": 2, "embedding": base64_of(VECTORS[2])},
            ],
            "model": "m",
            "usage": {"prompt_tokens": 5, "total_tokens": 5},
        },
        tuple(("data", row, name) for row in range(3) for name in ("index", "embedding")),
        ("usage",),
        wants="vectors",
    ),
    "openai-vectors-in-order": Wire(
        "openai",
        {"data": [{"embedding": vector} for vector in VECTORS], "usage": {"prompt_tokens": 5}},
        tuple(("data", row, name) for row in range(3) for name in ("index", "embedding")),
        ("usage",),
        wants="vectors",
    ),
    "gemini-vectors": Wire(
        "gemini",
        {
            "embeddings": [{"values": vector} for vector in VECTORS],
            "usageMetadata": {"promptTokenCount": 5},
        },
        tuple(("embeddings", row, "values") for row in range(3)),
        ("usageMetadata",),
        wants="vectors",
    ),
}

EXAMPLES = int(os.environ.get("ODD_EXAMPLES", "600"))
OFTEN = settings(
    max_examples=EXAMPLES // len(WIRES),
    deadline=None,
    derandomize="ODD_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Some hundreds over all wires, the same each time; with ODD_EXAMPLES=20000 so many new ones."""
