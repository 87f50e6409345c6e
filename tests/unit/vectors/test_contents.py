"""What is asked for, by its content."""

import uuid

from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.vectors.contents import content_key, shares, wanted_of


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**4), min_size=1, max_size=50))
def test_the_shares_of_a_call_are_its_tokens(total: int, estimates: list[int]) -> None:
    found = shares(total, estimates)
    assert sum(one or 0 for one in found) == total
    assert all(one is not None and one >= 0 for one in found)


def test_nobody_shares_what_was_not_counted() -> None:
    assert shares(None, [1, 2]) == [None, None]


def test_a_key_is_of_one_user_one_size_and_one_kind_of_input() -> None:
    user = uuid.uuid4()
    keys = {
        content_key(one, owner, size)
        for one in ("1,2", (1, 2), (12,), "12")
        for owner in (None, user)
        for size in (None, 2, 3)
    }
    assert len(keys) == 4 * 2 * 3


def test_each_content_is_wanted_once() -> None:
    found = wanted_of(["a", (1,), "a", "b"], None, None)
    assert [(one.text, one.positions) for one in found] == [
        ("a", (0, 2)),
        ((1,), (1,)),
        ("b", (3,)),
    ]
