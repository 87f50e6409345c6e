"""Whatever fails, each item of a call ends once, after a bounded number of tries."""

from collections import Counter, deque
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import PromptStackError
from services.llm.errors import (
    BadResponse,
    ContentRefused,
    ContextTooLong,
    InvalidProviderRequest,
    Overloaded,
    ProviderTimeout,
    RateLimited,
)
from services.runs.asking import Call, Content
from services.runs.in_flight import InFlight, places
from services.runs.verdicts import ended, is_parted, is_retried

ONE_OF_MANY = (BadResponse, ContentRefused, ContextTooLong, InvalidProviderRequest, ProviderTimeout)


def call_of(count: int) -> Call:
    return Call([Content(bytes([n]), (2 * n, 2 * n + 1), f"text {n}") for n in range(count)])


@given(
    st.integers(1, 40),
    st.sets(st.integers(0, 39)),
    st.sampled_from(ONE_OF_MANY),
    st.integers(0, 4),
)
def test_the_bad_ones_of_a_call_are_found_and_the_others_are_served(
    count: int, bad: set[int], kind: type[PromptStackError], max_retries: int
) -> None:
    waiting = deque([call_of(count)])
    failed: Counter[int] = Counter()
    served: Counter[int] = Counter()
    asked = 0
    while waiting:
        call = waiting.popleft()
        asked += 1
        if not any(content.hash[0] in bad for content in call.contents):
            served.update(call.positions)
            continue
        error = kind("It is refused.")
        if is_retried(call, error, max_retries):
            assert error.transient
            waiting.append(replace(call, tries=call.tries + 1))
        elif is_parted(call, error):
            waiting.extend(call.halves())
        else:
            failed.update(end.position for end in ended(call, error))
    expected = {p for n in bad if n < count for p in (2 * n, 2 * n + 1)}
    assert set(failed) == expected
    assert set(served) == set(range(2 * count)) - expected
    assert max([*failed.values(), *served.values()]) == 1
    # Each call on the way down is made twice at most, and a text alone as often as it may be.
    assert asked <= 4 * count + len(expected) * (max_retries + 1)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_an_outage_uses_up_tries_and_a_rate_limit_does_not(max_retries: int) -> None:
    call = call_of(3)
    for _ in range(max_retries):
        assert is_retried(call, Overloaded("Down.", status=503), max_retries)
        call = replace(call, tries=call.tries + 1)
    assert not is_retried(call, Overloaded("Down.", status=503), max_retries)
    # Nobody's text is at fault: it is not asked for again in parts.
    assert not is_parted(call, Overloaded("Down.", status=503))
    assert is_retried(call, RateLimited("Slow down."), max_retries)


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=60))
def test_places_are_never_more_than_there_are(
    in_flight: int, steps: list[tuple[bool, int]]
) -> None:
    gate, taken = InFlight(), 0
    run_id = UUID(int=1)
    for is_taking, number in steps:
        if is_taking:
            given_ = gate.take(run_id, in_flight, number)
            assert given_ == min(number, places(in_flight) - taken)
            taken += given_
        else:
            back = min(number, taken)
            gate.give_back(run_id, back)
            taken -= back
