"""Users take turns by weight: deficit round robin against its model, in any order of coming."""

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.sharing.turns import Turns

WEIGHTS = st.sampled_from([0.25, 1.0, 2.0, 4.0])
MOST = 5.0
COSTS = st.floats(0.05, MOST)
USERS = [UUID(int=number) for number in range(5)]


def saved(turns: Turns) -> Turns:
    """As it is read again after it was stored."""
    return Turns(turns.last, {user: round(left, 6) for user, left in turns.credits.items() if left})


def walk(turns: Turns, weights: Mapping[UUID, float]) -> UUID:
    """Whose turn it is, by the rule itself: one visit after the other."""
    ring = sorted(weights)
    if turns.last is not None and turns.last in weights and turns.credits.get(turns.last, 0.0) > 0:
        return turns.last
    at = 0 if turns.last is None else bisect_right(ring, turns.last)
    while True:
        user = ring[at % len(ring)]
        visit = weights[user] / max(weights.values())
        turns.credits[user] = min(turns.credits.get(user, 0.0) + visit, 2 * visit)
        turns.last = user
        if turns.credits[user] > 0:
            return user
        at += 1


EXACT = st.integers(-40, 8).map(lambda eighths: eighths / 8)
"""Credits that a float holds without error, as are the weights."""


@given(
    st.dictionaries(st.sampled_from(USERS), WEIGHTS, min_size=1),
    st.dictionaries(st.sampled_from(USERS), EXACT),
    st.none() | st.sampled_from(USERS),
    st.lists(st.integers(1, 30), min_size=1, max_size=5),
)
def test_many_turns_at_once_are_as_one_by_one(
    weights: dict[UUID, float],
    credits_: dict[UUID, float],
    last: UUID | None,
    numbers: list[int],
) -> None:
    at_once, model = Turns(last, credits_), Turns(last, credits_)
    for number in numbers:
        expected = []
        for _ in range(number):
            expected.append(walk(model, weights))
            model.charge(expected[-1], 1.0)
        assert at_once.share_out(weights, number) == expected
        assert at_once.last == model.last
        assert {user: left for user, left in at_once.credits.items() if left} == {
            user: left for user, left in model.credits.items() if left
        }


@pytest.mark.parametrize("heaviest", [1.0, 1_000.0])
def test_turns_among_many_users_take_no_time(heaviest: float) -> None:
    """They are given out in a transaction, under a lock that all processes want."""
    weights = {uuid4(): 1.0 for _ in range(499)} | {uuid4(): heaviest}
    took = []
    for _ in range(5):
        turns, began = Turns(), time.thread_time()
        assert len(turns.share_out(weights, 500)) == 500
        took.append(time.thread_time() - began)
    assert min(took) < 0.05


@given(
    st.dictionaries(st.sampled_from(USERS), WEIGHTS, min_size=2),
    st.lists(COSTS, min_size=1, max_size=150),
)
def test_what_users_get_is_in_the_ratio_of_their_weights(
    weights: dict[UUID, float], costs: list[float]
) -> None:
    """At every moment, up to one visit of each and the one thing by which a turn may be longer."""
    turns, got = Turns(), Counter[UUID]()
    for cost in costs:
        turns = saved(turns)
        user = turns.next(weights)
        turns.charge(user, cost)
        got[user] += cost  # type: ignore[assignment] # a float
        for one, weight in weights.items():
            for other, others in weights.items():
                apart = got[one] / weight - got[other] / others
                assert apart <= 1 / max(weights.values()) + MOST / weight + MOST / others + 1e-3


Step = tuple[str, UUID, float]


@given(
    st.dictionaries(st.sampled_from(USERS), WEIGHTS, min_size=2),
    st.lists(
        st.tuples(
            st.sampled_from(["come", "serve", "serve", "serve"]), st.sampled_from(USERS), COSTS
        ),
        max_size=200,
    ),
)
def test_users_come_and_go_and_none_starves(weights: dict[UUID, float], steps: list[Step]) -> None:
    """Against a model: who waits, for how much, and what the others have got meanwhile."""
    turns = Turns()
    backlog: dict[UUID, list[float]] = {}
    passed: dict[UUID, float] = {}
    for act, user, its_cost in steps:
        if act == "come":
            if user in weights:
                backlog.setdefault(user, []).append(its_cost)
                passed.setdefault(user, 0.0)
            continue
        if not backlog:
            continue
        turns.keep(backlog)
        assert set(turns.credits) <= set(backlog), "who has nothing to do saves nothing up"
        chosen = turns.next({one: weights[one] for one in backlog})
        cost = backlog[chosen].pop(0)
        turns.charge(chosen, cost)
        assert -MOST <= turns.credits[chosen] <= 1.0
        for one in backlog:
            passed[one] += cost if one != chosen else 0.0
        passed[chosen] = 0.0
        # Nobody waits longer than the others' visits take until a debt of one is paid.
        visits = 1 + max(weights.values()) / min(weights.values())
        most = (visits + 1) * MOST * len(weights)
        assert all(waited <= most for waited in passed.values())
        if not backlog[chosen]:
            del backlog[chosen], passed[chosen]


def test_who_is_alone_gets_everything() -> None:
    turns = Turns()
    for _ in range(100):
        turns.keep([USERS[0]])
        assert turns.next({USERS[0]: 1.0}) == USERS[0]
        turns.charge(USERS[0], 1.0)
    # And owes nothing for it when another comes.
    one, other = USERS[:2]
    got = Counter[UUID]()
    for _ in range(10):
        user = turns.next({one: 1.0, other: 1.0})
        turns.charge(user, 1.0)
        got[user] += 1
    assert abs(got[one] - got[other]) <= 1


@pytest.mark.parametrize("credit", [0.0, 1.0])
def test_a_user_who_is_passed_over_has_the_rest_of_one_turn_later(credit: float) -> None:
    one, other = USERS[:2]
    turns = Turns(one, {one: credit})
    for _ in range(10):
        turns.charge(turns.next({other: 1.0}), 1.0)
    got = []
    for _ in range(10):
        got.append(turns.next({one: 4.0, other: 1.0}))
        turns.charge(got[-1], 1.0)
    assert 7 <= got.count(one) <= 9
