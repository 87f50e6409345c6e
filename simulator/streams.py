"""Answers as streams of server-sent events, on each wire."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from promptstack.simulator.wire import Stream

_PIECE = re.compile(r"\S+\s*|\s+")
Event = Mapping[str, Any]


def pieces(text: str) -> list[str]:
    """A text as a model would stream it, about a word at a time."""
    return _PIECE.findall(text)


def of_chat(answer: Event, *, with_usage: bool) -> Stream:
    """A chat completion as a stream."""
    usage = {"usage": None} if with_usage else {}
    base = {
        **{name: answer[name] for name in ("id", "created", "model")},
        "object": "chat.completion.chunk",
    }

    def chunk(delta: Event, reason: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**base, "choices": [choice], **usage}

    events: list[Event | str] = []
    for choice in answer["choices"]:
        message = choice["message"]
        events.append(chunk({"role": "assistant", "content": "", "refusal": None}))
        for name in ("content", "refusal"):
            events += [chunk({name: piece}) for piece in pieces(message[name] or "")]
        for index, call in enumerate(message.get("tool_calls") or ()):
            function = call["function"]
            begun = {**call, "index": index, "function": {**function, "arguments": ""}}
            events.append(chunk({"tool_calls": [begun]}))
            events += [
                chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
                for piece in pieces(function["arguments"])
            ]
        events.append(chunk({}, choice["finish_reason"]))
    if with_usage:
        events.append({**base, "choices": [], "usage": answer["usage"]})
    events.append("[DONE]")
    return Stream([_data(event) for event in events], _data)


def of_response(answer: Event) -> Stream:
    """An answer of the Responses API as a stream."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    for index, item in enumerate(answer["output"]):
        where = {"output_index": index, "item_id": item["id"]}
        is_call = item["type"] == "function_call"
        nothing: dict[str, Any] = {"arguments": ""} if is_call else {"content": []}
        hollow = {**item, "status": "in_progress", **nothing}
        events.append({"type": "response.output_item.added", "output_index": index, "item": hollow})
        if item["type"] == "function_call":
            events += _deltas("response.function_call_arguments", item["arguments"], where)
        for place, part in enumerate(item.get("content") or ()):
            kind = "refusal" if part["type"] == "refusal" else "text"
            name = "response.refusal" if kind == "refusal" else "response.output_text"
            inside: Event = {**where, "content_index": place}
            told = {**inside, "logprobs": []} if kind == "text" else inside
            empty = {**part, kind: ""}
            events.append({"type": "response.content_part.added", **inside, "part": empty})
            events += _deltas(name, part[kind], told)
            events.append({"type": "response.content_part.done", **inside, "part": part})
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": f"response.{answer['status']}", "response": answer})
    numbered = [{**event, "sequence_number": number} for number, event in enumerate(events)]

    def refuse(body: Event) -> bytes:
        error = {name: body["error"][name] for name in ("code", "message", "param")}
        return _named({"type": "error", **error, "sequence_number": len(numbered)})

    return Stream(list(map(_named, numbered)), refuse)


def of_message(answer: Event) -> Stream:
    """A message of Anthropic as a stream."""
    usage = answer["usage"]
    begun = {
        **answer,
        "content": [],
        "stop_reason": None,
        "usage": {**usage, "output_tokens": 1},
    }
    events: list[Event] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(answer.get("content") or ()):
        hollow, deltas = _block(block)
        events.append({"type": "content_block_start", "index": index, "content_block": hollow})
        events += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        events.append({"type": "content_block_stop", "index": index})
    events.insert(2, {"type": "ping"})
    stop = {name: answer[name] for name in ("stop_reason", "stop_sequence")}
    made = {"output_tokens": usage["output_tokens"]}
    events += [{"type": "message_delta", "delta": stop, "usage": made}, {"type": "message_stop"}]
    return Stream(list(map(_named, events)), _named)


def of_content(answer: Event) -> Stream:
    """A content of Gemini as a stream; each event has the form of an answer."""
    counted = {
        name: answer["usageMetadata"][name]
        for name in ("promptTokenCount", "cachedContentTokenCount")
    }
    events: list[Event] = []
    for candidate in answer["candidates"]:
        for part in candidate["content"]["parts"]:
            shown = (
                [{"text": piece} for piece in pieces(part["text"])] if "text" in part else [part]
            )
            events += [
                {
                    **answer,
                    "candidates": [
                        {"index": 0, "content": {"role": "model", "parts": [piece]}},
                    ],
                    "usageMetadata": counted,
                }
                for piece in shown
            ]
        last = {
            "index": 0,
            "content": {"role": "model", "parts": [{"text": ""}]},
            "finishReason": candidate["finishReason"],
        }
        events.append({**answer, "candidates": [last]})
    return Stream([_data(event) for event in events or [answer]], _data)


def _deltas(name: str, text: str, where: Event) -> Iterator[dict[str, Any]]:
    for piece in pieces(text):
        yield {"type": f"{name}.delta", **where, "delta": piece}
    whole = {"arguments": text} if name.endswith("arguments") else {"text": text}
    yield {"type": f"{name}.done", **where, **whole}


def _block(block: Event) -> tuple[Event, Sequence[Event]]:
    if block["type"] == "tool_use":
        written = pieces(json.dumps(block["input"]))
        return {**block, "input": {}}, [
            {"type": "input_json_delta", "partial_json": piece} for piece in written
        ]
    deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
    return {**block, "text": ""}, deltas


def _data(event: Event | str) -> bytes:
    text = event if isinstance(event, str) else json.dumps(event)
    return f"data: {text}\n\n".encode()


def _named(event: Event) -> bytes:
    return f"event: {event['type']}\n".encode() + _data(event)
