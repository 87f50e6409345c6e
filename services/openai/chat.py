"""Chat completions and their streams, made of stored answers of any provider."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

COMPLETION, CHUNK = "chat.completion", "chat.completion.chunk"
DEFAULT_TIER = "default"
STOP, LENGTH, TOOL_CALLS, CONTENT_FILTER = "stop", "length", "tool_calls", "content_filter"
FINISH_REASONS: Mapping[str, str] = {
    **dict.fromkeys(("max_tokens", "max_output_tokens", "model_length"), LENGTH),
    "model_context_window_exceeded": LENGTH,
    **dict.fromkeys(("tool_use", "tool_call", "function_call"), TOOL_CALLS),
    **dict.fromkeys(("refusal", "safety", "recitation", "blocklist", "spii"), CONTENT_FILTER),
    **dict.fromkeys(("prohibited_content", "language", "image_safety"), CONTENT_FILTER),
}
"""Words of other wires, in lower case. A word that is unknown means that the model has stopped."""


def chat_completion(
    result: Mapping[str, Any], *, answer_id: str, created: int, model: str, tier: str = DEFAULT_TIER
) -> dict[str, Any]:
    """A stored answer as a chat completion; `model` where the answer does not name its own."""
    calls = _tool_calls(result)
    text = result.get("text") or ""
    message = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = calls
    return {
        "id": answer_id,
        "object": COMPLETION,
        "created": created,
        "model": result.get("model") or model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": finish_reason(result),
            }
        ],
        "usage": usage(result),
        "service_tier": tier,
        "system_fingerprint": None,
    }


def finish_reason(result: Mapping[str, Any]) -> str:
    """Why the model ended its answer, in one of OpenAI's words."""
    said = str(result.get("finish_reason") or "").lower()
    known = said if said in {LENGTH, CONTENT_FILTER} else FINISH_REASONS.get(said, STOP)
    if known == TOOL_CALLS or (known == STOP and result.get("tool_calls")):
        return TOOL_CALLS if result.get("tool_calls") else STOP
    return known


def usage(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokens of an answer; None where its provider does not say them."""
    asked, made = result.get("input_tokens"), result.get("output_tokens")
    if asked is None or made is None:
        return None
    return {
        "prompt_tokens": asked,
        "completion_tokens": made,
        "total_tokens": asked + made,
        "prompt_tokens_details": {
            "cached_tokens": result.get("cached_tokens") or 0,
            "audio_tokens": 0,
        },
        "completion_tokens_details": {
            "reasoning_tokens": result.get("reasoning_tokens") or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def arguments_text(arguments: Any) -> str:
    """The arguments of a call as models write them; those that were no JSON are text already."""
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))


class ChatStream:
    """The chunks of one answer: `first`, `text` for each piece, and those of `last`."""

    def __init__(
        self,
        *,
        answer_id: str,
        created: int,
        model: str,
        with_usage: bool = False,
        tier: str = DEFAULT_TIER,
    ) -> None:
        """With `with_usage`, the last chunk says the tokens, as `stream_options` asks for."""
        self._common = {
            "id": answer_id,
            "object": CHUNK,
            "created": created,
            "model": model,
            "service_tier": tier,
            "system_fingerprint": None,
        }
        self._with_usage = with_usage

    def first(self) -> dict[str, Any]:
        """The chunk with which an answer begins."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, piece: str) -> dict[str, Any]:
        """The next piece of the text."""
        return self._chunk({"content": piece})

    def last(self, result: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The calls of tools, the reason of the end and the tokens of an answer."""
        calls = _tool_calls(result)
        numbered = [{"index": index, **call} for index, call in enumerate(calls)]
        chunks = [self._chunk({"tool_calls": numbered})] if numbered else []
        chunks.append(self._chunk({}, finish_reason(result)))
        if self._with_usage:
            chunks.append({**self._common, "choices": [], "usage": usage(result)})
        return chunks

    def _chunk(self, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        chunk = {**self._common, "choices": [choice]}
        return {**chunk, "usage": None} if self._with_usage else chunk


def _tool_calls(result: Mapping[str, Any]) -> Sequence[dict[str, Any]]:
    return [
        {
            "id": call["id"],
            "type": "function",
            "function": {"name": call["name"], "arguments": arguments_text(call["arguments"])},
        }
        for call in result.get("tool_calls") or ()
    ]
