"""Responses: a generation that is waited for, streamed, or left to run in the background."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field, StrictBool

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import IdempotencyKey
from promptstack.api.http.direct import DirectAnswer, DirectCall
from promptstack.api.http.openai.asked import DirectBody
from promptstack.api.http.openai.ids import read_wire_id
from promptstack.api.http.openai.response_streams import ResponseStream
from promptstack.api.http.openai.routes import openai_router
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.openai.responses import RESPONSE_PREFIX
from promptstack.services.validation.bounds import MaxTokens, Name, Temperature, Text
from promptstack.services.validation.json_text import dump_json

router: APIRouter = openai_router()

PATH = "/responses"
ONE = f"{PATH}/{{response_id}}"
MOST_ITEMS = 100
ITEMS = 20
Number = Annotated[int, Query(ge=0, lt=2**63)]


class ResponseBody(DirectBody):
    """An input, and how to answer it. Fields that OpenAI adds are looked at by the service."""

    input: Text | list[Any]
    instructions: Text | None = None
    background: StrictBool | None = None
    previous_response_id: str | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    parallel_tool_calls: StrictBool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: Annotated[int, Field(strict=True, ge=1, lt=2**31)] | None = None
    prompt_cache_key: Name | None = None
    safety_identifier: Name | None = None

    @property
    def is_bulk(self) -> bool:
        """Also in the background, where nobody waits."""
        return bool(self.background) or super().is_bulk

    def asked(self) -> dict[str, Any]:
        """What it says beside its input; null counts as missing."""
        return {name: value for name, value in self if value is not None and name != "input"}


@router.post(PATH)
def create_response(
    body: ResponseBody,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a response, and answer with it: whole, as a stream, or queued in the background."""
    # It goes on without its client where somebody can ask for it later, and said so.
    is_kept = bool(body.background or body.store) or idempotency_key is not None
    if body.stream or not body.background:
        stack.events.room.check(caller.user_id)
    view = stack.responses.create(
        body.asked(),
        body.input,
        _previous(body.previous_response_id),
        idempotency_key=idempotency_key,
        bulk=body.is_bulk,
        tags=body.tags(),
        expires_in=None if is_kept else stack.settings.direct_wait_seconds,
        **caller.as_owner,
    )
    call = DirectCall(request, view.job, is_kept=is_kept)
    if body.stream:
        return ResponseStream(request, call, view)
    if body.background:
        return _answer(view.body())
    return DirectAnswer(call, lambda ended: view.with_job(ended).body())


@router.get(ONE)
def get_response(
    response_id: str,
    request: Request,
    stack: Stack,
    caller: CurrentCaller,
    *,
    stream: bool = False,
    starting_after: Number | None = None,
) -> Response:
    """Look at a response, or with `stream` at its events: those after a number, if one is given."""
    view = stack.responses.get(_read(response_id), caller.user_id)
    if not stream:
        if starting_after is not None:
            raise InvalidInput(
                "`starting_after` is for streams; send `stream=true` as well.",
                pointer="/starting_after",
            )
        return _answer(view.body())
    if not view.status.is_final:
        stack.events.room.check(caller.user_id)
    call = DirectCall(request, view.job, is_kept=True)
    after = -1 if starting_after is None else starting_after
    return ResponseStream(request, call, view, after=after, has_deadline=False)


@router.post(f"{ONE}/cancel")
def cancel_response(response_id: str, stack: Stack, caller: CurrentCaller) -> Response:
    """End a response. One that has ended stays as it is."""
    return _answer(stack.responses.cancel(_read(response_id), caller.user_id).body())


@router.delete(ONE)
def delete_response(response_id: str, stack: Stack, caller: CurrentCaller) -> dict[str, Any]:
    """Delete a response, and the job that has made it."""
    stack.responses.delete(_read(response_id), caller.user_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.get(f"{ONE}/input_items")
def list_input_items(
    response_id: str,
    stack: Stack,
    caller: CurrentCaller,
    *,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = ITEMS,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the items of a response's own input; the last ones first, unless `order` is `asc`."""
    items = stack.responses.input_items(_read(response_id), caller.user_id)
    if order == "desc":
        items.reverse()
    first = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise NotFound(f"There is no item {after[:80]!a} in the input of {response_id}.")
        first = ids.index(after) + 1
    page = items[first : first + limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": first + limit < len(items),
    }


def _read(given: str) -> UUID:
    return read_wire_id(RESPONSE_PREFIX, given, "response")


def _previous(given: str | None) -> UUID | None:
    if given is None:
        return None
    try:
        return _read(given)
    except NotFound as error:
        raise InvalidInput(
            f"There is no response {given[:80]!a} of yours.", pointer="/previous_response_id"
        ) from error


def _answer(body: dict[str, Any]) -> Response:
    return Response(dump_json(body), media_type="application/json")
