"""Messages and their streams, made of stored answers of any provider."""

from collections.abc import Iterator, Mapping
from typing import Any

from promptstack.services.openai.chat import arguments_text, finish_reason

STOP_REASONS: Mapping[str, str] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
"""By OpenAI's words."""
Event = dict[str, Any]


def message(result: Mapping[str, Any], *, message_id: str, model: str) -> dict[str, Any]:
    """A stored answer as a message; `model` where the answer does not name its own."""
    text, calls = result.get("text") or "", _calls(result)
    blocks: list[dict[str, Any]] = []
    if text or not calls:
        blocks.append({"type": "text", "text": text, "citations": None})
    return {
        **_empty(message_id, result.get("model") or model),
        "content": [*blocks, *calls],
        "stop_reason": stop_reason(result),
        "usage": usage(result),
    }


def stop_reason(result: Mapping[str, Any]) -> str:
    """Why the model ended its answer, in one of Anthropic's words."""
    return STOP_REASONS[finish_reason(result)]


def usage(result: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens of an answer; zero where its provider does not say them, as clients need them."""
    cached = result.get("cached_tokens") or 0
    written = result.get("cache_write_tokens") or 0
    return {
        "input_tokens": max(0, (result.get("input_tokens") or 0) - cached - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "output_tokens": result.get("output_tokens") or 0,
        "service_tier": "standard",
    }


class MessageStream:
    """The events of one answer: `first`, `text` for each piece, and those of `last`."""

    def __init__(self, *, message_id: str, model: str) -> None:
        self._message = _empty(message_id, model)
        self._has_text = False

    def first(self) -> Event:
        """The event with which an answer begins. How many tokens it had is known at its end."""
        return {"type": "message_start", "message": {**self._message, "usage": usage({})}}

    def text(self, piece: str) -> Iterator[Event]:
        """The next piece of the text."""
        if not self._has_text:
            self._has_text = True
            yield _begin(0, {"type": "text", "text": ""})
        yield _delta(0, {"type": "text_delta", "text": piece})

    def last(self, result: Mapping[str, Any]) -> Iterator[Event]:
        """The calls of tools, the reason of the end and the tokens of an answer."""
        if self._has_text:
            yield _end(0)
        for index, call in enumerate(_calls(result), int(self._has_text)):
            yield _begin(index, {**call, "input": {}})
            written = arguments_text(call["input"])
            yield _delta(index, {"type": "input_json_delta", "partial_json": written})
            yield _end(index)
        delta = {"stop_reason": stop_reason(result), "stop_sequence": None}
        yield {"type": "message_delta", "delta": delta, "usage": usage(result)}
        yield {"type": "message_stop"}


def _empty(message_id: str, model: str) -> dict[str, Any]:
    return {
        "id": message_id,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _calls(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "tool_use", "id": call["id"], "name": call["name"], "input": _object(call)}
        for call in result.get("tool_calls") or ()
    ]


def _object(call: Mapping[str, Any]) -> Any:
    """The arguments of a call; clients need an object, also of those that were no JSON."""
    arguments = call["arguments"]
    return {"arguments": arguments} if isinstance(arguments, str) else arguments


def _begin(index: int, block: Mapping[str, Any]) -> Event:
    return {"type": "content_block_start", "index": index, "content_block": dict(block)}


def _delta(index: int, delta: Mapping[str, Any]) -> Event:
    return {"type": "content_block_delta", "index": index, "delta": dict(delta)}


def _end(index: int) -> Event:
    return {"type": "content_block_stop", "index": index}
