"""Responses and their events, judged by the models of OpenAI's SDK."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from promptstack.repositories.migrations import STEPS
from promptstack.repositories.models import JobState
from promptstack.services.openai.chat import FINISH_REASONS
from promptstack.services.openai.response_events import (
    BEGAN_AGAIN,
    NUMBERS_OF_A_TRY,
    ResponseEvents,
)
from promptstack.services.openai.responses import (
    INCOMPLETE,
    ResponseStatus,
    response_error,
    response_object,
    status_of,
)

ONE = UUID("01900000-0000-7000-8000-000000000001")
ASKED: dict[str, Any] = {
    "instructions": "Be brief.",
    "metadata": {"a": "b"},
    "service_tier": "flex",
    "background": True,
    "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
    "tool_choice": {"type": "function", "name": "look"},
    "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
    "reasoning": {"effort": "low"},
}
RESULT: dict[str, Any] = {
    "text": "It is warm.",
    "model": "gpt-5-mini-2026",
    "finish_reason": "stop",
    "input_tokens": 5,
    "output_tokens": 3,
    "cached_tokens": 1,
    "tool_calls": [{"id": "call_1", "name": "look", "arguments": {"at": "Wien"}}],
}
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def _whole(result: dict[str, Any] | None, status: ResponseStatus, **known: Any) -> dict[str, Any]:
    return response_object(
        ONE, ASKED, created_at=5, status=status, model="gpt-5-mini", result=result, **known
    )


def _events(after: int = -1, *, is_background: bool = True) -> ResponseEvents:
    def make(status: ResponseStatus) -> dict[str, Any]:
        return _whole(None, status)

    return ResponseEvents(ONE, make, is_background=is_background, after=after)


def _ended(result: dict[str, Any], attempt: int = 1) -> tuple[Any, ...]:
    status = status_of(JobState.SUCCEEDED, result)
    return JobState.SUCCEEDED, result, attempt, _whole(result, status)


def _all(result: dict[str, Any], after: int = -1, attempt: int = 1) -> list[dict[str, Any]]:
    """The events of a response that has ended."""
    events = _events(after)
    return events.begin() + events.end(*_ended(result, attempt))


def _told(events: list[dict[str, Any]]) -> str:
    return "".join(
        event["delta"] for event in events if event["type"] == "response.output_text.delta"
    )


@pytest.mark.parametrize("status", list(ResponseStatus), ids=str)
@pytest.mark.parametrize("asked", [{}, ASKED], ids=["nothing", "much"])
def test_a_response_is_one_for_the_sdk(status: ResponseStatus, asked: dict[str, Any]) -> None:
    error = response_error("EXPIRED", "Too late.") if status is ResponseStatus.FAILED else None
    made = response_object(
        ONE, asked, created_at=5, status=status, model="m", result=RESULT, error=error
    )
    read = Response.model_validate(json.loads(json.dumps(made)), strict=False)
    assert read.id == f"resp_{ONE.hex}"
    assert read.status == status
    assert (read.error is not None) == (status is ResponseStatus.FAILED)
    assert bool(read.output) == (status in {"completed", "incomplete"})


def test_a_cut_off_answer_is_incomplete() -> None:
    result = {**RESULT, "finish_reason": "length", "tool_calls": []}
    status = status_of(JobState.SUCCEEDED, result)
    read = Response.model_validate(_whole(result, status))
    assert read.status == "incomplete"
    assert read.incomplete_details is not None
    assert read.incomplete_details.reason == "max_output_tokens"
    assert read.output[0].status == "incomplete"  # type: ignore[union-attr]
    assert read.output_text == "It is warm."


def test_events_come_in_the_order_of_openais() -> None:
    events = _all(RESULT)
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "queued", "in_progress"),
        *("output_item.added", "content_part.added"),
        *["output_text.delta"] * 3,
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event)


@given(
    text=st.text(st.sampled_from("ab \n\tä漢"), max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    after=st.integers(-1, 60),
    begun_again_at=st.integers(0, 200),
)
def test_events_are_the_same_however_the_text_comes(
    text: str, cuts: list[int], after: int, begun_again_at: int
) -> None:
    result = {**RESULT, "text": text}
    whole = _all(result)
    events = _events(after)
    told = events.begin()
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [text[first:last] for first, last in pairwise(places)]
    for number, piece in enumerate(pieces):
        if number == begun_again_at:  # the same text is sent again, as where Redis lost it
            told += events.restart(1)
            told += events.text(text[: places[number]], 1)
        told += events.text(piece, 1)
    told += events.end(*_ended(result))
    assert told == [event for event in whole if event["sequence_number"] > after]
    assert _told(whole) == text


def test_text_of_another_try_is_not_joined_to_what_was_told() -> None:
    events = _events()
    told = events.begin() + events.text("It was cold ", 1)
    assert _told(told) == "It was cold"
    told = events.restart(2)
    assert [(event["type"], event["code"]) for event in told] == [("error", BEGAN_AGAIN)]
    assert events.is_over
    EVENT.validate_python(told[0])


def test_another_text_in_the_same_try_is_an_error_too() -> None:
    events = _events()
    events.begin()
    events.text("It was cold ", 1)
    assert events.restart(1) == []
    assert [event["type"] for event in events.text("It is", 1)] == ["error"]


def test_a_try_before_any_text_is_no_news() -> None:
    events = _events()
    told = events.begin() + events.restart(3) + events.text("It is ", 3)
    told += events.end(*_ended(RESULT, attempt=3))
    assert told == _all(RESULT, attempt=3)
    assert told[3]["sequence_number"] == 3 + 2 * NUMBERS_OF_A_TRY


def test_who_has_text_of_an_earlier_try_is_told_so() -> None:
    """Its number says which try it is of, also when only the ledger is left to ask."""
    [error] = _all(RESULT, after=6, attempt=2)
    assert (error["type"], error["sequence_number"] >= 6) == ("error", True)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED], ids=str)
def test_an_end_without_an_answer_has_a_number_above_all_that_was_told(state: JobState) -> None:
    status = status_of(state, None)
    whole = _whole(None, status, error=response_error("EXPIRED", "Too late."))
    live = _events()
    told = live.begin() + live.text("It is warm ", 1) + live.end(state, None, 1, whole)
    later = _events()
    assert (later.begin() + later.end(state, None, 1, whole))[-1] == told[-1]
    numbers = [event["sequence_number"] for event in told]
    assert numbers == sorted(set(numbers))
    EVENT.validate_python(told[-1])


def test_webhooks_call_the_same_answers_incomplete() -> None:
    """The trigger that tells ends has the words of its own time."""
    found = spec_from_file_location("step", next(STEPS.glob("*_responses.py")))
    assert found is not None
    assert found.loader is not None
    step = module_from_spec(found)
    found.loader.exec_module(step)
    words = {*INCOMPLETE, *(word for word, known in FINISH_REASONS.items() if known in INCOMPLETE)}
    assert set(step.CUT_OFF) == words
