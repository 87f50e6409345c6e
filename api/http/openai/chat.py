"""Chat completions: a generation whose answer the client waits for, whole or piece by piece."""

from collections.abc import Iterable
from typing import Annotated, Any

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, Field, StrictBool

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import IdempotencyKey
from promptstack.api.http.direct import DirectAnswer, DirectCall
from promptstack.api.http.direct_streams import DirectStream, event
from promptstack.api.http.openai.asked import DirectBody, generation_of
from promptstack.api.http.openai.errors import openai_error
from promptstack.api.http.openai.ids import unix, wire_id
from promptstack.api.http.openai.routes import openai_router
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.views import JobView
from promptstack.services.openai.chat import ChatStream, chat_completion

router = openai_router()

ENDPOINT = "/chat/completions"
PREFIX = "chatcmpl-"
LONGEST = "max_completion_tokens"
"""What `max_tokens` is called now."""
DONE = b"data: [DONE]\n\n"


class StreamOptions(BaseModel):
    """How an answer is streamed."""

    include_usage: StrictBool | None = None


class ChatBody(DirectBody):
    """A conversation, and how to go on with it."""

    messages: Annotated[list[Any], Field(min_length=1)]
    stream_options: StreamOptions | None = None


@router.post(ENDPOINT)
def create_chat_completion(
    body: ChatBody,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer a conversation. The job is kept where `store` or an idempotency key asks for it."""
    is_kept = bool(body.store) or idempotency_key is not None
    stack.events.room.check(caller.user_id)
    try:
        job = stack.jobs.enqueue_generation(
            **generation_of(stack, caller, ENDPOINT, body, idempotency_key),
            expires_in=None if is_kept else stack.settings.direct_wait_seconds,
        )
    except InvalidInput as error:
        if error.pointer == "/max_tokens" and (body.model_extra or {}).get(LONGEST) is not None:
            error.pointer = f"/{LONGEST}"
        raise
    call = DirectCall(request, job, is_kept=is_kept)
    if body.stream:
        return DirectStream(request, call, ChatWire(job, body))
    return DirectAnswer(call, lambda ended: _completion(ended, body))


def _completion(job: JobView, body: ChatBody) -> dict[str, Any]:
    made = chat_completion(job.result or {}, **_named(job), tier=body.tier)
    return made if body.metadata is None else {**made, "metadata": body.metadata}


def _named(job: JobView) -> dict[str, Any]:
    return {
        "answer_id": wire_id(PREFIX, job.id),
        "created": unix(job.created_at),
        "model": job.model,
    }


class ChatWire:
    """A chat completion's stream."""

    def __init__(self, job: JobView, body: ChatBody) -> None:
        options = body.stream_options
        with_usage = options is not None and bool(options.include_usage)
        self._stream = ChatStream(**_named(job), with_usage=with_usage, tier=body.tier)

    def begin(self) -> Iterable[bytes]:
        """The chunk that says whose text it is."""
        return [event(self._stream.first())]

    def text(self, piece: str) -> Iterable[bytes]:
        """A chunk of the text."""
        return [event(self._stream.text(piece))]

    def end(self, job: JobView) -> Iterable[bytes]:
        """The last chunks, and the word that no other comes."""
        return [*map(event, self._stream.last(job.result or {})), DONE]

    def broken(self, problem: Response) -> Iterable[bytes]:
        """The error, on which clients stop reading."""
        return [event(openai_error(orjson.loads(problem.body)))]
