"""A shard judges for some moments at once, and when it must end, for some seconds more."""

from typing import Any
from unittest.mock import Mock

import pytest

from promptstack.services.llm.base import LLMResponse
from promptstack.services.runs.json_schema.answers import AnswerMismatch, AnswerNotJudged
from promptstack.services.runs.shards.call_pool import Answered, Event, Failed, Sent
from promptstack.services.runs.shards.judging import AT_ONCE_SECONDS, LAST_SECONDS, Judging
from promptstack.services.runs.shards.store import Unfit


class Slow:
    """Judges in a time of its own."""

    def __init__(self, seconds: float) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.judged = 0

    def fault(self, answer: LLMResponse) -> AnswerMismatch | None:
        self.now += self.seconds
        self.judged += 1
        if answer.text == "broken":
            raise ZeroDivisionError
        return AnswerMismatch("It does not fit.") if answer.text == "bad" else None

    def unjudged(self, answer: LLMResponse) -> AnswerNotJudged:
        return AnswerNotJudged("There was no time.", detail=answer.text)


def came(*texts: str) -> list[Event]:
    answers = [LLMResponse(text, "model", 1, 1, finish_reason="stop") for text in texts]
    return [Answered(Sent(Mock(), None, number, None), one) for number, one in enumerate(answers)]


def judging(asking: Any, *texts: str) -> Judging:
    made = Judging(asking, lambda: asking.now)
    made.add(came(*texts))
    return made


@pytest.mark.parametrize("seconds", [0.01, 0.2, 3.0])
def test_it_pauses_between_answers_and_loses_none(seconds: float) -> None:
    asking = Slow(seconds)
    made, found = judging(asking, *["good"] * 100), []
    while made:
        begun = asking.now
        some = made.some()
        assert some
        assert asking.now - begun <= AT_ONCE_SECONDS + seconds
        found += some
    assert [one.sent.attempt_id for one in found if isinstance(one, Answered)] == list(range(100))


@pytest.mark.parametrize("seconds", [0.01, 1.0, 60.0])
def test_at_the_end_it_judges_for_some_seconds_and_keeps_the_rest_unjudged(seconds: float) -> None:
    asking = Slow(seconds)
    rest = judging(asking, *["good"] * 100).rest()
    assert len(rest) == 100
    assert asking.now <= LAST_SECONDS + seconds
    late = rest[asking.judged :]
    assert all(isinstance(one, Unfit) and one.error.detail == "good" for one in late)
    assert all(isinstance(one, Answered) for one in rest[: asking.judged])


def test_time_that_is_waited_for_answers_is_no_time_of_judging() -> None:
    asking = Slow(0.01)
    made = judging(asking, "good")
    made.hurry()
    assert isinstance(made.some()[0], Answered)
    asking.now += 10 * LAST_SECONDS
    made.hurry()
    made.add(came("good"))
    assert isinstance(made.some()[0], Answered)


def test_whatever_judging_meets_the_others_are_kept() -> None:
    failed = Failed(Sent(Mock(), None, 9, None), AnswerMismatch("It failed."))
    made = judging(Slow(0.0), "broken", "bad", "good")
    made.add([failed])
    broken, bad, good, same = made.some()
    assert isinstance(broken, Unfit)
    assert broken.error.code == "INTERNAL_ERROR"
    assert isinstance(bad, Unfit)
    assert bad.error.code == "ANSWER_MISMATCH"
    assert isinstance(good, Answered)
    assert same is failed
