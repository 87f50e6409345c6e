"""Waits before a retry: bounded, spread, and never shorter than what the provider asked for."""

import math

from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.execution.backoff import Backoff

seconds = st.floats(0.01, 1e6)
tries = st.one_of(st.integers(1, 100), st.integers(1, 10**30))
asked = st.one_of(st.none(), st.floats(0, 1e6))


def lowest(low: float, high: float) -> float:
    return low


def highest(low: float, high: float) -> float:
    return high


@given(seconds, seconds, tries, asked)
def test_a_wait_is_finite_and_within_its_bounds(
    base: float, maximum: float, failed: int, retry_after: float | None
) -> None:
    wait = Backoff(base, maximum).delay(failed, retry_after)
    assert math.isfinite(wait)
    assert (retry_after or 0.0) <= wait <= max(maximum, retry_after or 0.0)


@given(seconds, seconds, st.integers(1, 30), asked)
def test_the_bound_doubles_with_each_failure_up_to_the_maximum(
    base: float, maximum: float, failed: int, retry_after: float | None
) -> None:
    backoff = Backoff(base, maximum, uniform=highest)
    bound = min(maximum, base * 2 ** (failed - 1))
    assert backoff.delay(failed) == bound
    assert backoff.delay(failed, retry_after) == max(bound, retry_after or 0.0)
    assert backoff.delay(failed + 1) >= bound


@given(seconds, tries)
def test_many_failures_reach_the_maximum_and_stay_there(base: float, failed: int) -> None:
    backoff = Backoff(base, base * 1_000, uniform=highest)
    assert backoff.delay(failed + 10) == base * 1_000


@given(seconds, seconds, tries, asked)
def test_full_jitter_may_wait_nothing_but_never_less_than_asked(
    base: float, maximum: float, failed: int, retry_after: float | None
) -> None:
    wait = Backoff(base, maximum, uniform=lowest).delay(failed, retry_after)
    assert wait == (retry_after or 0.0)


def test_tries_that_failed_together_are_spread() -> None:
    backoff = Backoff(100, 100)
    assert len({backoff.delay(1) for _ in range(50)}) > 40
