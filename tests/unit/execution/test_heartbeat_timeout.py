"""How long a worker must be silent to count as dead."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.maintenance.liveness import blind_spans, heartbeat_timeout

LOST = 15.0


@pytest.mark.parametrize(
    ("spans", "now", "timeout"),
    [
        ([], 100.0, 15.0),
        # Nobody had looked before.
        ([(-math.inf, 100.0)], 114.9, None),
        ([(-math.inf, 100.0)], 115.0, 15.0),
        # It was away for 20 s: these don't count, and the living get 5 s to find it again.
        ([(80.0, 100.0)], 104.9, None),
        ([(80.0, 100.0)], 105.0, 35.0),
        ([(80.0, 100.0)], 115.0, 15.0),
        ([(50.0, 60.0), (70.0, 90.0)], 96.0, 35.0),
        ([(60.0, 69.0), (70.0, 90.0)], 96.0, 44.0),
    ],
)
def test_time_in_which_nobody_could_send_a_heartbeat_does_not_count(
    spans: list[tuple[float, float]], now: float, timeout: float | None
) -> None:
    assert heartbeat_timeout(spans, now, LOST) == timeout


def test_a_gap_between_rounds_is_blind_and_a_clock_put_back_forgets_all() -> None:
    assert blind_spans([], None, 5.0, 7.5) == [(-math.inf, 5.0)]
    assert blind_spans([(1.0, 2.0)], 10.0, 17.4, 7.5) == [(1.0, 2.0)]
    assert blind_spans([(1.0, 2.0)], 10.0, 17.5, 7.5) == [(1.0, 2.0), (10.0, 17.5)]
    assert blind_spans([(1.0, 2.0)], 10.0, 9.0, 7.5) == [(-math.inf, 9.0)]
    assert blind_spans([(1.0, 2.0)], 701.0, 702.0, 7.5) == []


@given(st.lists(st.floats(0.1, 40.0), max_size=30), st.floats(1.0, 60.0))
def test_the_timeout_counts_only_time_in_which_heartbeats_could_be_sent(
    gaps: list[float], lost: float
) -> None:
    now, spans = 0.0, blind_spans([], None, 0.0, lost / 2)
    for gap in gaps:
        spans = blind_spans(spans, now, now + gap, lost / 2)
        now += gap
    timeout = heartbeat_timeout(spans, now, lost)
    seen = now - sum(end - max(begin, 0.0) for begin, end in spans)
    if timeout is None:
        assert seen < lost or now - spans[-1][1] < lost / 3
        return
    since = now - timeout
    could_beat = timeout - sum(
        max(0.0, min(end, now) - max(begin, since)) for begin, end in spans if end > since
    )
    assert could_beat == pytest.approx(lost)
    assert timeout >= lost - 1e-9
