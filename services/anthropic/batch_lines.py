"""Message batches: their requests as lines of a batch's file, and what became of each."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from promptstack.repositories.run_models import RunKind
from promptstack.services.anthropic.errors import error_body
from promptstack.services.anthropic.messages import message
from promptstack.services.anthropic.requests import generation_of
from promptstack.services.batches.forms import AnsweredLine, FailedLine, Written
from promptstack.services.errors import InvalidInput
from promptstack.services.openai.errors import failure_of

BATCH_PREFIX = "msgbatch_"
ENDPOINT = "/v1/chat/completions"
"""What its lines ask for: a message is kept as the chat completion that asks for the same."""
CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""As at Anthropic."""
LEFT: Mapping[str, str] = {"BATCH_CANCELLED": "canceled", "BATCH_EXPIRED": "expired"}
"""How requests ended that were left open when their batch ended."""


def lines_of(requests: Sequence[Any]) -> tuple[str, bytes]:
    """The model that all requests ask, and their lines. Raises `InvalidInput`."""
    lines = [_line(request, f"/requests/{at}") for at, request in enumerate(requests)]
    ids: set[str] = set()
    for at, line in enumerate(lines):
        if line["custom_id"] in ids:
            raise InvalidInput(
                "The same custom_id came before; each request needs one of its own.",
                pointer=f"/requests/{at}/custom_id",
            )
        ids.add(line["custom_id"])
    first = lines[0]["body"]["model"]
    for at, line in enumerate(lines):
        if line["body"]["model"] != first:
            raise InvalidInput(
                f"All requests of a batch ask the same model; the first one asks {first[:100]!r}. "
                "Make a batch for each model.",
                pointer=f"/requests/{at}/params/model",
            )
    return first, b"".join(orjson.dumps(line) + b"\n" for line in lines)


def _line(request: Any, place: str) -> dict[str, Any]:
    params = request.get("params") if isinstance(request, Mapping) else None
    if not isinstance(params, Mapping):
        raise InvalidInput("A request has a custom_id and params.", pointer=f"{place}/params")
    custom_id = request.get("custom_id")
    if not isinstance(custom_id, str) or not CUSTOM_ID.fullmatch(custom_id):
        raise InvalidInput(
            "A request has a custom_id of 1 to 64 letters, digits, hyphens and underscores.",
            pointer=f"{place}/custom_id",
        )
    if not isinstance(params.get("model"), str) or type(params.get("max_tokens")) is not int:
        raise InvalidInput("A request has a model and max_tokens.", pointer=f"{place}/params")
    if params["max_tokens"] < 1:
        raise InvalidInput("It must be at least 1.", pointer=f"{place}/params/max_tokens")
    if params.get("stream"):
        raise InvalidInput("Answers of batches are not streamed.", pointer=f"{place}/params/stream")
    try:
        how = generation_of(params)
    except InvalidInput as error:
        raise InvalidInput(str(error), pointer=f"{place}/params{error.pointer}") from error
    if options := sorted(how.pop("options", {})):
        raise InvalidInput(
            f"Requests of batches can't hand on {', '.join(options)[:200]}; leave it out.",
            pointer=f"{place}/params/{options[0]}",
        )
    system = how.pop("system", None)
    turns = how.pop("messages")
    if system:
        turns = [{"role": "system", "content": system}, *turns]
    schema = how.pop("json_schema", None)
    if schema is not None:
        named = {"name": "answer", "schema": schema}
        how["response_format"] = {"type": "json_schema", "json_schema": named}
    body = {"model": params["model"], "messages": turns, **how}
    return {"custom_id": request["custom_id"], "method": "POST", "url": ENDPOINT, "body": body}


class AnthropicLines:
    """A form of the lines of batches."""

    endpoints: Mapping[str, RunKind] = {ENDPOINT: RunKind.GENERATION}
    id_prefix = BATCH_PREFIX
    skips_bad = True

    def answered(self, batch: Written, line: AnsweredLine) -> bytes:
        """A line of a request that has succeeded."""
        message_id = f"msg_{batch.batch_id.hex}{line.position:08x}"
        made = message(line.answer or {}, message_id=message_id, model=batch.model)
        return _result(line.custom_id, {"type": "succeeded", "message": made})

    def failed(self, batch: Written, line: FailedLine) -> bytes:
        """A line of a request without an answer."""
        if line.code in LEFT:
            return _result(line.custom_id, {"type": LEFT[line.code]})
        said = f"{line.message} {line.detail}" if line.detail else line.message
        error = {**error_body(failure_of(line.code).status, said), "request_id": None}
        return _result(line.custom_id, {"type": "errored", "error": error})


def _result(custom_id: str, result: Mapping[str, Any]) -> bytes:
    line = {"custom_id": custom_id, "result": result}
    return orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
