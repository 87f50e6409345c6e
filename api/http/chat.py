"""Chat: a generation whose answer is waited for."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from promptstack.api.http.accepted import asked_at
from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import IdempotencyKey
from promptstack.api.http.generations import GenerationBody
from promptstack.api.http.problems import respond
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.http.waiting import Waiting, as_accepted, headers_of
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.events.places import Look
from promptstack.services.flags.known import Feature
from promptstack.services.jobs.views import JobView

router = APIRouter(tags=["generations"], route_class=ProtectedRoute)


class ChatBody(GenerationBody):
    """A generation, and how long its answer is waited for."""

    wait: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Most seconds to wait. Unset: the server's CHAT_WAIT_SECONDS, the most."
    )

    def keywords(self) -> dict[str, Any]:
        """The keywords of its enqueue call."""
        return {name: value for name, value in self if name != "wait"}


@router.post(
    "/chat",
    response_model=JobView,
    responses={202: {"model": JobView, "description": "It goes on; ask `Location` for it."}},
)
def create_chat(
    body: ChatBody,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept one generation and wait for its answer; for whom the feature `ai_chat` is on.

    The job with its answer, or with 202 the job that goes on: after the time, or where too many
    wait already. A client that goes away loses nothing.
    """
    stack.flags.check(Feature.AI_CHAT, caller)
    most = stack.settings.chat_wait_seconds
    seconds = most if body.wait is None else body.wait
    if seconds > most:
        raise InvalidInput(f"`wait` is at most {most:g} s here (CHAT_WAIT_SECONDS).")
    job = stack.jobs.enqueue_generation(
        **body.keywords(), **caller.as_owner, idempotency_key=idempotency_key
    )
    headers = asked_at(stack, f"/jobs/{job.id}")
    return Waiting(request, seconds).for_job(job, partial(_answer, headers))


def _answer(headers: Mapping[str, str], look: Look) -> Response:
    """Answer with the job, or with 502 where there will be no answer."""
    if look.is_final and look.state != JobState.SUCCEEDED:
        job = JobView.model_validate_json(look.data)
        detail = f"The job is {job.state}: {job.error or 'it was asked to end.'}"
        code = job.error_code or f"JOB_{job.state.upper()}"
        return respond(502, detail, code=code, headers=headers_of(headers, look))
    return as_accepted(headers, look)
