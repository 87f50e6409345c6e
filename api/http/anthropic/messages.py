"""Messages: a generation whose answer the client waits for, whole or piece by piece."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from promptstack.api.http.anthropic.errors import anthropic_error
from promptstack.api.http.anthropic.routes import anthropic_router
from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import Given, IdempotencyKey, refuse_many_fields
from promptstack.api.http.direct import DirectAnswer, DirectCall
from promptstack.api.http.direct_streams import DirectStream
from promptstack.api.http.openai.ids import wire_id
from promptstack.services.anthropic.messages import MessageStream, message
from promptstack.services.anthropic.requests import generation_of
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.answers import BYTES_PER_TOKEN, Capability
from promptstack.services.llm.requests import Fallback
from promptstack.tasks.composition import PromptStack

router = anthropic_router()

MESSAGE_PREFIX = "msg_"
ANTHROPIC = "anthropic"


class CountedBody(BaseModel):
    """A conversation as Anthropic's clients send it."""

    model_config = ConfigDict(extra="allow")

    model: Given
    messages: Annotated[list[Any], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        return refuse_many_fields(value)


class MessageBody(CountedBody):
    """A conversation, and how to go on with it; other fields are kept as they were sent."""

    max_tokens: Annotated[int, Field(strict=True, ge=1)]
    stream: StrictBool | None = None


@router.post("/messages")
def create_message(
    body: MessageBody,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Answer a conversation. The job is kept where an idempotency key asks for it."""
    is_kept = idempotency_key is not None
    stack.events.room.check(caller.user_id)
    meant = stack.model_names.resolve(
        body.model,
        Capability.GENERATION,
        key_limits=caller.key_limits,
        same_for=idempotency_key,
    )
    how = generation_of(dict(body))
    check_options(stack, meant.provider, how.get("options", {}))
    job = stack.jobs.enqueue_generation(
        **how,
        provider=meant.provider,
        model=meant.model,
        fallbacks=_fallbacks(stack, meant.fallbacks, how.get("options", {})),
        stream=bool(body.stream),
        idempotency_key=idempotency_key,
        expires_in=None if is_kept else stack.settings.direct_wait_seconds,
        **caller.as_owner,
    )
    call = DirectCall(request, job, is_kept=is_kept)
    if body.stream:
        return DirectStream(request, call, MessageWire(job))
    return DirectAnswer(call, lambda ended: message(ended.result or {}, **_named(ended)))


@router.post("/messages/count_tokens")
def count_tokens(body: CountedBody, stack: Stack, caller: CurrentCaller) -> dict[str, int]:
    """Estimate the tokens of a conversation by its length; nobody is asked."""
    stack.model_names.resolve(body.model, Capability.GENERATION, key_limits=caller.key_limits)
    how = generation_of(dict(body))
    size = len(orjson.dumps([how.get(name) for name in ("system", "messages", "tools")]))
    return {"input_tokens": -(-size // BYTES_PER_TOKEN)}


def _fallbacks(
    stack: PromptStack, fallbacks: Sequence[Fallback], options: dict[str, Any]
) -> list[Fallback]:
    """Those that can obey these options, each with them."""
    found = []
    for one in fallbacks:
        with suppress(InvalidInput):
            check_options(stack, one.provider, options)
            found.append(one.model_copy(update={"options": options}))
    return found


def check_options(stack: PromptStack, provider: str, options: dict[str, Any]) -> None:
    """Raise `InvalidInput` for fields that only a server of Anthropic's wire knows."""
    wire = getattr(stack.factory.service_class(provider), "wire", None)
    if options and wire != ANTHROPIC:
        other = sorted(options)
        raise InvalidInput(
            f"Provider '{provider}' does not know {', '.join(other)[:200]} of a request to "
            "Anthropic; leave it out.",
            pointer=f"/{other[0]}",
        )


def _named(job: JobView) -> dict[str, Any]:
    return {"message_id": wire_id(MESSAGE_PREFIX, job.id), "model": job.model}


class MessageWire:
    """A message's stream."""

    def __init__(self, job: JobView) -> None:
        self._stream = MessageStream(**_named(job))

    def begin(self) -> Iterable[bytes]:
        """The event that says whose text it is."""
        return [_event(self._stream.first())]

    def text(self, piece: str) -> Iterable[bytes]:
        """Events of the text."""
        return map(_event, self._stream.text(piece))

    def end(self, job: JobView) -> Iterable[bytes]:
        """The last events."""
        return map(_event, self._stream.last(job.result or {}))

    def broken(self, problem: Response) -> Iterable[bytes]:
        """The error, on which clients stop reading."""
        return [_event(anthropic_error(orjson.loads(problem.body)))]


def _event(data: dict[str, Any]) -> bytes:
    """A server-sent event, named by its type."""
    return b"event: %s\ndata: %s\n\n" % (data["type"].encode(), orjson.dumps(data))
