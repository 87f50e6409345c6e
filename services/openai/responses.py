"""Response objects of OpenAI's Responses API, made of what was asked and of stored answers."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any
from uuid import UUID

from promptstack.repositories.models import JobState
from promptstack.services.openai.chat import CONTENT_FILTER, LENGTH, arguments_text, finish_reason
from promptstack.services.openai.errors import failure_of

RESPONSE_PREFIX = "resp_"
INCOMPLETE: Mapping[str, str] = {LENGTH: "max_output_tokens", CONTENT_FILTER: "content_filter"}
"""Why an answer is incomplete, by the reason of its end."""
ERROR_CODES: Mapping[int, str] = {
    400: "invalid_prompt",
    413: "invalid_prompt",
    429: "rate_limit_exceeded",
}
"""OpenAI's codes of a failed response by the failure's status. Else `server_error`; its clients
know no others."""
DEFAULT_FORMAT = {"type": "text"}


class ResponseStatus(StrEnum):
    """Where a response stands."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INCOMPLETE = "incomplete"

    @property
    def is_final(self) -> bool:
        """Whether it has ended."""
        return self not in {ResponseStatus.QUEUED, ResponseStatus.IN_PROGRESS}


_STATUSES: Mapping[JobState, ResponseStatus] = {
    JobState.QUEUED: ResponseStatus.QUEUED,
    JobState.RUNNING: ResponseStatus.IN_PROGRESS,
    JobState.FAILED: ResponseStatus.FAILED,
    JobState.EXPIRED: ResponseStatus.FAILED,
    JobState.CANCELLED: ResponseStatus.CANCELLED,
}


def status_of(state: JobState, result: Mapping[str, Any] | None) -> ResponseStatus:
    """The status of a response by the state of its job and its stored answer."""
    if state is not JobState.SUCCEEDED:
        return _STATUSES[state]
    is_cut = finish_reason(result or {}) in INCOMPLETE
    return ResponseStatus.INCOMPLETE if is_cut else ResponseStatus.COMPLETED


def response_id(one: UUID) -> str:
    """The id of a response as clients see it."""
    return f"{RESPONSE_PREFIX}{one.hex}"


def response_object(
    one: UUID,
    asked: Mapping[str, Any],
    *,
    created_at: int,
    status: ResponseStatus,
    model: str,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
    completed_at: int | None = None,
) -> dict[str, Any]:
    """A response; `asked` is the body that asked for it, and may lack its input.

    `result` is the stored answer of one that is completed or incomplete, `error` is made by
    `response_error` for one that has failed.
    """
    is_answered = status in {ResponseStatus.COMPLETED, ResponseStatus.INCOMPLETE}
    answer = result if is_answered and result is not None else {}
    reason = INCOMPLETE.get(finish_reason(answer)) if answer else None
    return {
        "id": response_id(one),
        "object": "response",
        "created_at": created_at,
        "status": status,
        "background": bool(asked.get("background")),
        "completed_at": completed_at if status is ResponseStatus.COMPLETED else None,
        "error": dict(error) if error is not None else None,
        "incomplete_details": {"reason": reason} if reason else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "max_tool_calls": asked.get("max_tool_calls"),
        "metadata": asked.get("metadata") or {},
        "model": answer.get("model") or model,
        "output": output_items(one, answer) if answer else [],
        "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
        "previous_response_id": asked.get("previous_response_id"),
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "reasoning": {"effort": None, "summary": None, **(asked.get("reasoning") or {})},
        "safety_identifier": asked.get("safety_identifier"),
        "service_tier": _tier(asked),
        "store": asked.get("store") is not False,
        "temperature": asked.get("temperature"),
        "text": {"format": DEFAULT_FORMAT, **_there(asked.get("text") or {})},
        "tool_choice": _tool_choice(asked.get("tool_choice")),
        "tools": [_tool(tool) for tool in asked.get("tools") or ()],
        "top_logprobs": 0,
        "top_p": asked.get("top_p"),
        "truncation": asked.get("truncation") or "disabled",
        "usage": usage(answer),
        "user": asked.get("user"),
    }


def response_error(code: str | None, message: str | None) -> dict[str, Any]:
    """Why a response has failed, of the code and words of our error."""
    failure = failure_of(code)
    return {
        "code": ERROR_CODES.get(failure.wire_status, "server_error"),
        "message": message or "The response could not be made.",
        "type": failure.code,
        "param": None,
    }


def output_items(one: UUID, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a stored answer holds: its text as a message, then the calls of tools."""
    is_cut = finish_reason(result) in INCOMPLETE
    status = "incomplete" if is_cut else "completed"
    text, calls = result.get("text") or "", result.get("tool_calls") or ()
    items = [message_item(one, status, [output_text(text)])] if text or not calls else []
    return [*items, *(call_item(one, number, call) for number, call in enumerate(calls))]


def message_item(one: UUID, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of an answer."""
    return {
        "id": message_id(one),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def message_id(one: UUID) -> str:
    """The id of the message of an answer."""
    return f"msg_{one.hex}"


def output_text(text: str) -> dict[str, Any]:
    """A text of an answer."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(one: UUID, number: int, call: Mapping[str, Any]) -> dict[str, Any]:
    """One call of a tool in an answer."""
    return {
        "id": f"fc_{one.hex}{number:04d}",
        "type": "function_call",
        "status": "completed",
        "call_id": call["id"],
        "name": call["name"],
        "arguments": arguments_text(call["arguments"]),
    }


def usage(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """The tokens of an answer; None where its provider does not say them."""
    asked, made = result.get("input_tokens"), result.get("output_tokens")
    if asked is None or made is None:
        return None
    return {
        "input_tokens": asked,
        "input_tokens_details": {
            "cached_tokens": result.get("cached_tokens") or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": result.get("reasoning_tokens") or 0},
        "total_tokens": asked + made,
    }


def _tier(asked: Mapping[str, Any]) -> str:
    tier = asked.get("service_tier")
    return "default" if tier in {None, "auto"} else str(tier)


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as the Responses API writes it, without an object `function`."""
    inner = given.get("function")
    flat = {**given, **inner} if isinstance(inner, Mapping) else dict(given)
    flat.pop("function", None)
    return {"description": None, "parameters": None, "strict": False, **flat, "type": "function"}


def _tool_choice(given: Any) -> Any:
    if given is None:
        return "auto"
    if not isinstance(given, Mapping):
        return given
    inner = given.get("function")
    name = given.get("name") or (inner.get("name") if isinstance(inner, Mapping) else None)
    return {"type": "function", "name": name}


def _there(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
