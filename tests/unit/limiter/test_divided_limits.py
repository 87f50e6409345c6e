"""The limiter of one worker without Redis: a 429 stops the others only where it is about them."""

import pytest

from promptstack.services.limiter.divided import DividedBuckets
from promptstack.services.limiter.terms import (
    Bucket,
    Grant,
    Limits,
    Need,
    Settlement,
    Verdict,
    Wait,
)
from promptstack.services.llm.answers import LimitReport, LimitState, Outcome

BUCKET = Bucket("made-up", "key", "model")
ROOM = LimitReport({"requests": LimitState(6_000, 5_000)})
NO_ROOM = LimitReport({"requests": LimitState(6_000, 0)})
NEED = Need(10, 10)


class OneWorker:
    """Asks without a limit that is known but for calls in flight."""

    def __init__(self) -> None:
        self.buckets = DividedBuckets(lambda: 1, clock=lambda: 0.0)

    def ask(self) -> Verdict:
        return self.buckets.ask(BUCKET, Limits(in_flight=100), NEED, patience=3.0)

    def call(self, settlement: Settlement) -> None:
        assert isinstance(self.ask(), Grant)
        self.buckets.settle(BUCKET, settlement)


@pytest.mark.parametrize(
    ("settlement", "kind"),
    [
        (Settlement(Outcome.THROTTLED, retry_after=2.0, report=ROOM), Grant),
        (Settlement(Outcome.THROTTLED, retry_after=2.0, report=NO_ROOM), Wait),
        (Settlement(Outcome.THROTTLED, report=NO_ROOM), Wait),
        (Settlement(Outcome.THROTTLED, retry_after=2.0), Grant),
        (Settlement(Outcome.FAILED, retry_after=2.0), Grant),
    ],
    ids=["room", "no room", "no room, no time", "no headers", "a 503"],
)
def test_one_refusal_stops_the_others_only_where_its_headers_say_so(
    settlement: Settlement, kind: type[Verdict]
) -> None:
    worker = OneWorker()
    for _ in range(5):
        worker.call(Settlement(Outcome.ANSWERED))
    worker.call(settlement)
    assert isinstance(worker.ask(), kind)


def test_several_429s_stop_all_whatever_headers_say() -> None:
    worker = OneWorker()
    for _ in range(3):
        worker.call(Settlement(Outcome.THROTTLED, retry_after=2.0, report=ROOM))
    assert isinstance(worker.ask(), Wait)
