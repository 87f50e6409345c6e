"""How long work takes at known limits, beside other work that shares them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.services.limiter.terms import Limits
from promptstack.services.runs.work import Weighted, Work, added, done_with, seconds_of

amounts = st.floats(0, 1e9)
works = st.builds(Work, amounts, amounts, amounts)
weights = st.floats(0.01, 100)


def test_the_scarcest_limit_decides() -> None:
    work = Work(60, 6_000, 600)
    assert seconds_of(work, Limits()) is None
    assert seconds_of(work, Limits(in_flight=5)) is None
    assert seconds_of(work, Limits(requests=60)) == 60
    assert seconds_of(work, Limits(requests=60, tokens=660)) == 600
    assert seconds_of(work, Limits(requests=60, output=60, input=60_000)) == 600


@given(works, st.lists(st.tuples(works, weights)))
def test_it_is_never_sooner_than_alone_and_never_later_than_after_all_others(
    own: Work, given_: list[tuple[Work, float]]
) -> None:
    others = [Weighted(*one) for one in given_]
    done = done_with(own, others)
    whole = added([own, *(one.work for one in others)])
    for mine, all_, most in zip(own, done, whole, strict=True):
        assert mine <= all_ * (1 + 1e-9)
        assert all_ <= most * (1 + 1e-9) + 1e-6
    # More of the others is never sooner.
    more = [Weighted(added([one.work, one.work]), one.weight) for one in others]
    assert all(a <= b * (1 + 1e-9) for a, b in zip(done, done_with(own, more), strict=True))


@given(works, works)
def test_small_work_beside_large_is_done_after_twice_its_own(small: Work, more: Work) -> None:
    large = added([small, more])
    assert done_with(small, [Weighted(large, 1.0)]) == pytest.approx(added([small, small]))
    assert done_with(large, [Weighted(small, 1.0)]) == pytest.approx(added([large, small]))
