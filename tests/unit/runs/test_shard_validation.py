"""A shard judges for some moments at once, and when it must end, for some seconds more."""

from decimal import Decimal
from typing import Any
from unittest.mock import Mock

import pytest

from promptstack.services.execution.content_calls import Call
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.runs.json_schema.answers import AnswerMismatch, AnswerNotJudged
from promptstack.services.runs.shards.call_pool import CallAnswered, CallFailed, Event, RecordedCall
from promptstack.services.runs.shards.validation import ValidationLimits, ValidationQueue

LIMITS = ValidationLimits()


class Slow:
    """Judges in a time of its own."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.judged = 0

    def validate(self, _: Call, answer: LLMResponse) -> AnswerMismatch | None:
        self.now += self.seconds
        self.judged += 1
        if answer.text == "broken":
            raise ZeroDivisionError
        return AnswerMismatch("It does not fit.") if answer.text == "bad" else None

    def skip_validation(self, _: Call, answer: LLMResponse) -> AnswerNotJudged:
        return AnswerNotJudged("There was no time.", detail=answer.text)


def came(*texts: str) -> list[Event]:
    answers = [LLMResponse(text, "model", 1, 1, finish_reason="stop") for text in texts]
    return [
        CallAnswered(RecordedCall(Mock(), None, number, Decimal(0)), one)
        for number, one in enumerate(answers)
    ]


def queue_of(workload: Any, *texts: str) -> ValidationQueue:
    made = ValidationQueue(workload, LIMITS, lambda: workload.now)
    made.add(came(*texts))
    return made


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3.0])
def test_it_pauses_between_answers_and_loses_none(seconds: float) -> None:
    workload = Slow(seconds)
    made, found = queue_of(workload, *["good"] * 100), []
    while made:
        begun = workload.now
        some = made.take()
        assert some
        assert workload.now - begun <= LIMITS.at_once_seconds + seconds
        found += some
    assert [one.recorded.attempt_id for one in found if isinstance(one, CallAnswered)] == list(
        range(100)
    )


@pytest.mark.parametrize("seconds", [0.01, 1.0, 60.0])
def test_validation_at_the_end_of_a_shard_is_bounded_and_keeps_the_rest_unvalidated(
    seconds: float,
) -> None:
    workload = Slow(seconds)
    rest = queue_of(workload, *["good"] * 100).drain()
    assert len(rest) == 100
    assert workload.now <= LIMITS.last_seconds + seconds
    late = rest[workload.judged :]
    assert all(isinstance(one, CallFailed) and one.error.detail == "good" for one in late)
    assert all(isinstance(one, CallFailed) and one.answer for one in late)
    assert all(isinstance(one, CallAnswered) for one in rest[: workload.judged])


def test_time_that_is_waited_for_answers_is_no_time_of_queue_of() -> None:
    workload = Slow(0.01)
    made = queue_of(workload, "good")
    made.hurry()
    assert isinstance(made.take()[0], CallAnswered)
    workload.now += 10 * LIMITS.last_seconds
    made.hurry()
    made.add(came("good"))
    assert isinstance(made.take()[0], CallAnswered)


def test_whatever_judging_meets_the_others_are_kept() -> None:
    failed = CallFailed(RecordedCall(Mock(), None, 9, Decimal(0)), AnswerMismatch("It failed."))
    made = queue_of(Slow(0.0), "broken", "bad", "good")
    made.add([failed])
    broken, bad, good, same = made.take()
    assert isinstance(broken, CallFailed)
    assert broken.answer is not None
    assert broken.error.code == "INTERNAL_ERROR"
    assert isinstance(bad, CallFailed)
    assert bad.answer is not None
    assert bad.error.code == "ANSWER_MISMATCH"
    assert isinstance(good, CallAnswered)
    assert same is failed
