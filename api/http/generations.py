"""Generations: enqueue one."""

from typing import Annotated

from fastapi import APIRouter, Response, status
from pydantic import BeforeValidator, FailFast, Field, JsonValue

from api.http.auth import CurrentCaller, Stack
from api.http.bodies import IdempotencyKey, JobBody, refuse_many_fields
from services.llm.requests import MAX_FALLBACKS, MAX_TOOLS, Fallback, Message, Text, Tool
from services.views import JobView

router = APIRouter(tags=["generations"])

Turn = Annotated[Message, BeforeValidator(refuse_many_fields)]


class GenerationBody(JobBody):
    """What to generate: a prompt or messages, and how."""

    prompt: Text | None = Field(None, description="The input, where it is not `messages`.")
    messages: Annotated[tuple[Turn, ...], FailFast()] = Field(
        (), description="The turns of a conversation, where the input is not `prompt`."
    )
    system: Text | None = Field(None, description="What the model is to know and obey throughout.")
    temperature: float | None = Field(None, description="0 to 2.")
    max_tokens: int | None = Field(None, description="Longest answer, in tokens.")
    stop: Annotated[tuple[Text, ...], FailFast()] = Field(
        (), description="Texts at which the answer ends."
    )
    seed: int | None = Field(None, description="For answers that can be repeated.")
    json_schema: dict[str, JsonValue] | None = Field(
        None, description="A JSON schema that the answer must be an instance of."
    )
    tools: Annotated[tuple[Tool, ...], FailFast(), Field(max_length=MAX_TOOLS)] = Field(
        (), description="Tools that the model may call; the result then has `tool_calls`."
    )
    tool_choice: Text | None = Field(
        None, description="`auto`, `none`, `required` or the name of a tool."
    )
    options: dict[str, JsonValue] | None = Field(
        None, description="Parameters that only this provider knows."
    )
    fallbacks: Annotated[tuple[Fallback, ...], FailFast(), Field(max_length=MAX_FALLBACKS)] = Field(
        (), description="Who is asked, in this order, where the provider can't answer."
    )


@router.post("/generations", status_code=status.HTTP_202_ACCEPTED)
def create_generation(
    body: GenerationBody,
    stack: Stack,
    caller: CurrentCaller,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Accept one generation; `Location` says where to ask for it."""
    job = stack.jobs.enqueue_generation(
        **dict(body), user_id=caller.user_id, idempotency_key=idempotency_key
    )
    response.headers["Location"] = f"{stack.settings.api_v1_prefix}/jobs/{job.id}"
    return job
