"""What a request for a response asks for, as the keywords of a generation.

What can't be honoured is refused by name; nothing that would change an answer is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.request_bodies import API, HINTS, NotHonoured, asked_of

OPENAI = "openai"
"""The name of OpenAI's wire, and of its provider."""
OF_THIS_SERVER = frozenset({"background", "metadata", "model", "previous_response_id"}) | {
    *("service_tier", "store", "stream", "stream_options")
}
"""Fields that this server obeys itself; providers hear nothing of them."""
DEFAULTS: Mapping[str, Any] = {
    "truncation": "disabled",
    "parallel_tool_calls": True,
    "top_logprobs": 0,
}
"""Values that say what holds anyhow."""
WITHOUT_EFFECT = frozenset({"include", "max_tool_calls"})
"""Fields about what no answer here has: built-in tools, and what a model thinks."""
LOGPROBS = "message.output_text.logprobs"
REFUSED: Mapping[str, str] = {
    "conversation": "Conversations are not kept here. Go on by `previous_response_id`, or send the "
    "whole conversation as `input`.",
    "prompt": "Prompt templates are not kept here; write the text into `input` or `instructions`.",
    "context_management": "A conversation is not made shorter here; shorten `input`.",
    "moderation": "Nothing is moderated here; leave it out.",
}
"""Fields that nothing here could obey, and what to do instead."""
FIELDS: Mapping[str, str] = {"format": "text/format"}
"""Fields of objects, and where these are."""
POINTERS = (
    (re.compile(r"^/messages\b.*"), "/input"),
    (re.compile(r"^/max_tokens\b"), "/max_output_tokens"),
    (re.compile(r"^/json_schema\b"), "/text/format/schema"),
)
"""Our names of fields, and what they are called in a request for a response."""


def generation_of(
    asked: Mapping[str, Any], turns: Sequence[Any], provider: str, service: type[LLMService]
) -> tuple[list[Any], dict[str, Any]]:
    """The messages and the parameters of a generation for a request with this input."""
    rest = {name: value for name, value in asked.items() if name not in OF_THIS_SERVER}
    _check(rest)
    rest = {
        name: value
        for name, value in rest.items()
        if name not in WITHOUT_EFFECT and not (name in DEFAULTS and value == DEFAULTS[name])
    }
    is_openai = getattr(service, "wire", "") == OPENAI
    if not is_openai:
        rest = {name: value for name, value in rest.items() if name not in HINTS}
    try:
        said = asked_of("/responses", {**rest, "input": list(turns)})
    except NotHonoured as error:
        pointer = f"/{FIELDS.get(error.field, error.field)}" if error.field else ""
        raise InvalidInput(f"The request {error}.", pointer=pointer) from error
    how = dict(said.how)
    options = how.pop("options", {})
    if provider != OPENAI and not options.keys() - HINTS - {API}:
        # Not every server that speaks OpenAI's wire has its Responses API.
        options.pop(API, None)
    return said.record["messages"], {**how, "options": service.take_openai_options(options)}


def renamed(error: InvalidInput) -> InvalidInput:
    """The same error, which names the field as the caller knows it."""
    for pattern, name in POINTERS:
        error.pointer = pattern.sub(name, error.pointer)
    return error


def _check(asked: Mapping[str, Any]) -> None:
    """Raise `InvalidInput` for what nothing here could obey."""
    for name, why in REFUSED.items():
        if asked.get(name) not in (None, [], {}):
            raise InvalidInput(why, pointer=f"/{name}")
    if asked.get("top_logprobs") or LOGPROBS in (asked.get("include") or ()):
        name = "top_logprobs" if asked.get("top_logprobs") else "include"
        raise InvalidInput("Log probabilities are not kept; leave them out.", pointer=f"/{name}")
    for number, tool in enumerate(asked.get("tools") or ()):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
        if kind != "function":
            raise InvalidInput(
                f"There is no built-in tool {str(kind)[:40]!a} here. Tools of the type `function` "
                "are called by you, with any provider.",
                pointer=f"/tools/{number}/type",
            )
    choice = asked.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type", "function") != "function":
        raise InvalidInput(
            "Only tools of the type `function` can be chosen here.", pointer="/tool_choice/type"
        )
