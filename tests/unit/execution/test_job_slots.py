"""How many jobs a worker takes in hand."""

from contextlib import ExitStack

from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.execution.job_slots import RATE_SECONDS, JobSlots


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def end_jobs(slots: JobSlots, clock: Clock, seconds: float, count: int) -> None:
    """Let `count` jobs end within these seconds, one after the other."""
    for _ in range(count):
        clock.now += seconds / count
        with slots.storing():
            pass


def test_a_job_whose_answer_is_stored_makes_room_for_another() -> None:
    slots = JobSlots(3, clock=Clock())
    assert slots.most_jobs == 3
    with ExitStack() as storing:
        storing.enter_context(slots.storing())
        storing.enter_context(slots.storing())
        assert slots.most_jobs == 5
    assert slots.most_jobs == 3


def test_jobs_are_claimed_ahead_only_while_jobs_end_quickly() -> None:
    clock = Clock()
    slots = JobSlots(200, clock=clock)
    end_jobs(slots, clock, 4.0, 1_600)
    assert 215 <= slots.most_jobs <= 220
    # They take longer now: what is claimed ahead would wait here, while another worker is free.
    end_jobs(slots, clock, 4.0, 20)
    assert slots.most_jobs == 200
    end_jobs(slots, clock, 4.0, 1_600)
    clock.now += 3 * RATE_SECONDS
    assert slots.most_jobs == 200, "none has ended for a while"


@given(
    calls=st.integers(1, 500),
    steps=st.lists(st.tuples(st.floats(0.0, 10.0), st.integers(0, 2_000)), max_size=20),
)
def test_never_more_than_twice_the_slots(calls: int, steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    slots = JobSlots(calls, clock=clock)
    for seconds, count in steps:
        end_jobs(slots, clock, seconds, count)
        assert calls <= slots.most_jobs <= 2 * calls
