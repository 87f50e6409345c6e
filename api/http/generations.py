"""Generations: enqueue one."""

from typing import Annotated

from fastapi import APIRouter, Response, status
from pydantic import BeforeValidator, ConfigDict, FailFast, Field, StrictBool

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import (
    IdempotencyKey,
    JobBody,
    NotBlank,
    refuse_many_fields,
)
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.waiting import ENDED_IN_TIME, Wait
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.parameters import GenerationParameters
from promptstack.services.llm.request_turns import few_values
from promptstack.services.llm.requests import MAX_FALLBACKS, MAX_TURNS, Fallback, Message

router = APIRouter(tags=["generations"], route_class=ProtectedRoute)

Turn = Annotated[Message, BeforeValidator(refuse_many_fields)]


class GenerationBody(GenerationParameters, JobBody):
    """A prompt or messages, and how to generate."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
                {"required": ["messages"], "properties": {"messages": {"minItems": 1}}},
            ]
        }
    )

    prompt: NotBlank | None = Field(None, description="The input, where it is not `messages`.")
    messages: Annotated[
        tuple[Turn, ...], FailFast(), BeforeValidator(few_values), Field(max_length=MAX_TURNS)
    ] = Field((), description="The turns of a conversation, where the input is not `prompt`.")
    fallbacks: Annotated[tuple[Fallback, ...], FailFast(), Field(max_length=MAX_FALLBACKS)] = Field(
        (), description="Who is asked, in this order, where the provider can't answer."
    )
    stream: StrictBool = Field(
        False, description="Show its text as it is produced: its pieces are among its events."
    )


@router.post(
    "/generations",
    status_code=status.HTTP_202_ACCEPTED,
    response_model=JobView,
    responses={200: {"model": JobView, "description": ENDED_IN_TIME}},
)
def create_generation(
    body: GenerationBody,
    stack: Stack,
    caller: CurrentCaller,
    wait: Wait,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept one generation; `Location` says where to ask for it."""
    job = stack.jobs.enqueue_generation(
        **body.keywords(),
        **caller.as_owner,
        idempotency_key=idempotency_key,
    )
    return wait.for_new_job(job)
