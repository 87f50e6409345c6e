"""The lines of batches' outputs as OpenAI writes them."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid5

import orjson

from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunKind
from promptstack.services.batches.forms import AnsweredLine, FailedLine, Written
from promptstack.services.llm.answers import BYTES_PER_TOKEN
from promptstack.services.openai.chat import chat_completion
from promptstack.services.openai.embeddings import EncodingFormat, embedding_list
from promptstack.services.openai.errors import error_body, failure_of
from promptstack.services.openai.responses import response_object, status_of

BATCH_PREFIX = "batch_"
EMBEDDINGS, CHAT, RESPONSES = "/v1/embeddings", "/v1/chat/completions", "/v1/responses"


class OpenAILines:
    """A form of the lines of batches."""

    endpoints: Mapping[str, RunKind] = {
        EMBEDDINGS: RunKind.EMBEDDING,
        CHAT: RunKind.GENERATION,
        RESPONSES: RunKind.GENERATION,
    }
    id_prefix = BATCH_PREFIX
    skips_bad = False

    def answered(self, batch: Written, line: AnsweredLine) -> bytes:
        """A line of the output."""
        one = _name(batch, line)
        return (
            b'{"id":"batch_req_%b","custom_id":%b,"response":{"status_code":200,'
            b'"request_id":"req_%b","body":%b},"error":null}\n'
            % (one, orjson.dumps(line.custom_id), one, _body(batch, line))
        )

    def failed(self, batch: Written, line: FailedLine) -> bytes:
        """A line of the errors: a provider's error is a response, ours is none."""
        one = _name(batch, line).decode()
        failure = failure_of(line.code)
        response: dict[str, Any] | None = None
        error: dict[str, Any] | None = {"code": failure.code, "message": line.message}
        if failure.is_of_provider:
            said = f"{line.message} {line.detail}" if line.detail else line.message
            body = error_body(failure.status, said, code=failure.code)
            response = {"status_code": failure.wire_status, "request_id": f"req_{one}"}
            response["body"], error = body, None
        return orjson.dumps(
            {
                "id": f"batch_req_{one}",
                "custom_id": line.custom_id,
                "response": response,
                "error": error,
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )


def _name(batch: Written, line: AnsweredLine | FailedLine) -> bytes:
    """What tells a line from all others, each time that it is written."""
    return b"%b%08x" % (batch.batch_id.hex.encode(), line.position)


def _body(batch: Written, line: AnsweredLine) -> bytes:
    if line.vector is not None:
        asked = line.parameters.get("encoding_format")
        form: EncodingFormat = "base64" if asked == "base64" else "float"
        # Calls are packed, so nobody has counted the tokens of one line.
        tokens = -(-line.text_bytes // BYTES_PER_TOKEN)
        return embedding_list(batch.model, [line.vector], tokens, form)
    answer = line.answer or {}
    if batch.endpoint == RESPONSES:
        asked = _asked(line.parameters)
        status = status_of(JobState.SUCCEEDED, answer)
        return orjson.dumps(
            response_object(
                uuid5(batch.batch_id, str(line.position)),
                asked,
                created_at=batch.created,
                completed_at=batch.created,
                status=status,
                model=batch.model,
                result=answer,
            )
        )
    answer_id = f"chatcmpl-{_name(batch, line).decode()}"
    return orjson.dumps(
        chat_completion(answer, answer_id=answer_id, created=batch.created, model=batch.model)
    )


def _asked(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The body that has asked for a response, as far as its answer repeats it."""
    options = parameters.get("options") or {}
    same = ("temperature", "tools", "tool_choice")
    asked = {name: parameters[name] for name in same if name in parameters}
    if "max_tokens" in parameters:
        asked["max_output_tokens"] = parameters["max_tokens"]
    return {**options, **asked}
