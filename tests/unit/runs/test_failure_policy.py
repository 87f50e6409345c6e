"""Whatever fails, each item of a call ends once, after a bounded number of tries."""

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.config.errors import PromptStackError, Reach
from promptstack.services.access.errors import TooManyAttempts
from promptstack.services.execution.backoff import Backoff
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.failure_policy import (
    MAX_WASTE_FACTOR,
    bisect,
    is_bisected,
    is_retried,
    wasted,
)
from promptstack.services.limiter.errors import RequestTooLarge
from promptstack.services.llm.errors import (
    BadResponse,
    ContentRefused,
    ContextTooLong,
    InputRefused,
    InvalidProviderRequest,
    Overloaded,
    ProviderTimeout,
    RateLimited,
    ServerBroke,
)
from promptstack.services.notifications.errors import MailPostponed
from promptstack.services.runs.shards.decisions import Decisions, ended_with
from promptstack.services.sources.reading import BadRecord

MAX_RETRIES = 3
SAID = "It is refused."
ONE_OF_MANY: tuple[PromptStackError, ...] = (
    InputRefused(SAID, status=400),
    ContextTooLong(SAID),
    InvalidProviderRequest(SAID),
)
BILLED: tuple[PromptStackError, ...] = (
    BadResponse(SAID),
    ProviderTimeout(SAID),
    ContentRefused(SAID, status=200),
    ServerBroke(SAID, status=500),
)


def call_of(count: int) -> Call:
    return Call([Content(n.to_bytes(2), (2 * n, 2 * n + 1), f"text {n}") for n in range(count)])


@dataclass
class Played:
    """What became of a call some of whose texts are refused, and of all that came of it."""

    served: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)
    """Positions, and how often."""
    calls: int = 0
    in_vain: int = 0
    """Texts that were paid for in calls of several."""
    alone: int = 0
    """Failed calls of one text."""


def play(count: int, bad: set[int], error: PromptStackError, max_retries: int) -> Played:
    waiting, played = deque([call_of(count)]), Played()
    while waiting:
        call = waiting.popleft()
        played.calls += 1
        if not any(int.from_bytes(hash_) in bad for hash_ in call.hashes):
            played.served.update(call.positions)
            continue
        paid = wasted(call, error)
        played.in_vain += paid if len(call.contents) > 1 else 0
        played.alone += len(call.contents) == 1
        if is_retried(call, error, max_retries):
            assert error.transient
            waiting.append(replace(call, tries=call.tries + 1))
        elif is_bisected(call, error):
            waiting.extend(bisect(call, error))
        else:
            played.failed.update(end.position for end in ended_with(call, error))
    # Each item ends once, whatever happens.
    ends = played.served + played.failed
    assert ends == Counter(range(2 * count))
    return played


@given(
    st.integers(1, 40),
    st.sets(st.integers(0, 39)),
    st.sampled_from([*ONE_OF_MANY, *BILLED]),
    st.integers(0, 4),
)
def test_the_bad_ones_of_a_call_are_found_and_the_others_are_served(
    count: int, bad: set[int], error: PromptStackError, max_retries: int
) -> None:
    # Where each try is paid for, a few are looked for, and not more.
    bad = set(sorted(bad)[:2]) if error in BILLED else bad
    played = play(count, bad, error, max_retries)
    expected = {p for n in bad if n < count for p in (2 * n, 2 * n + 1)}
    assert set(played.failed) == expected
    # Of each bad one's way down: two calls a level.
    levels, found = ceil(log2(count)), len(expected) // 2
    most = 1 + 2 * levels * found
    if error.transient:
        # The whole is made once more, and a text alone as often as it may be.
        whole = max_retries if error.reach is Reach.EITHER else min(max_retries, 1)
        most += whole + max_retries * found
    assert played.calls <= most


@given(
    st.integers(1, 300),
    st.sets(st.integers(0, 299)),
    st.sampled_from(BILLED),
    st.integers(0, 4),
)
def test_what_is_paid_in_vain_is_bounded_however_many_are_bad(
    count: int, bad: set[int], error: PromptStackError, max_retries: int
) -> None:
    played = play(count, bad, error, max_retries)
    # As a whole twice, or as often as a server in trouble is asked; then in parts. What is left
    # alone is tried as often as it may be.
    whole = 1 + max_retries if error.reach is Reach.EITHER else 2
    assert played.in_vain <= (whole + MAX_WASTE_FACTOR) * count
    assert played.alone <= len(played.failed) // 2 * (1 + max_retries)


@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_an_outage_uses_up_tries_and_a_rate_limit_does_not(max_retries: int) -> None:
    call = call_of(3)
    for _ in range(max_retries):
        assert is_retried(call, Overloaded("Down.", status=503), max_retries)
        call = replace(call, tries=call.tries + 1)
    assert not is_retried(call, Overloaded("Down.", status=503), max_retries)
    # Nobody's text is at fault: it is not asked for again in parts.
    assert not is_bisected(call, Overloaded("Down.", status=503))
    assert is_retried(call, RateLimited("Slow down."), max_retries)


def test_a_call_over_the_limit_is_halved_until_it_fits() -> None:
    # The limiter held it back, so no part of it was paid for: nothing bounds how far it is halved.
    waiting, sent = deque([call_of(512)]), Counter[int]()
    while waiting:
        call = waiting.popleft()
        error = RequestTooLarge("It needs more than a minute's tokens.")
        if len(call.contents) == 1:
            sent.update(call.positions)
            continue
        assert is_bisected(call, error)
        waiting.extend(bisect(call, error))
    assert sent == Counter(range(2 * 512))


OF_NO_CALL = {BadRecord, TooManyAttempts, MailPostponed}
"""Errors of other work, which take more than a sentence."""


def all_errors(kind: type[PromptStackError] = PromptStackError) -> set[type[PromptStackError]]:
    """Every error that a call may end with, as far as it is known here."""
    children = {child for child in kind.__subclasses__() if child not in OF_NO_CALL}
    return {kind}.union(*(all_errors(child) for child in children))


@pytest.mark.parametrize("kind", sorted(all_errors(), key=str))
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("tries", [0, 1, 3])
def test_every_error_has_one_consequence(
    kind: type[PromptStackError], count: int, tries: int
) -> None:
    call = replace(call_of(count), tries=tries)
    decision = Decisions(MAX_RETRIES, Backoff(1.0, 9.0)).decide(call, kind("It is refused."))
    positions = sorted(call.positions)
    in_parts = sorted(position for one in decision.parts for position in one.positions)
    consequences = [
        decision.ends_run,
        decision.delayed is not None,
        decision.retried is not None,
        in_parts == positions,
        [end.position for end in decision.ends] == positions,
    ]
    assert sum(consequences) == 1
    if decision.retried is not None:
        assert decision.retried.tries == tries + 1 <= MAX_RETRIES
        assert sorted(decision.retried.positions) == positions
    if decision.delayed is not None:
        assert (decision.delayed.tries, sorted(decision.delayed.positions)) == (tries, positions)
    if tries >= MAX_RETRIES and kind.counts_as_failure:
        assert decision.ends_run or decision.ends or len(decision.parts) == 2
