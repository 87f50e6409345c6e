"""Limits from several sources."""

from promptstack.services.limiter.terms import Limits


def test_of_two_limits_the_narrower_holds_and_an_unknown_one_is_none() -> None:
    ours = Limits(requests=10, tokens=500, in_flight=3)
    theirs = Limits(requests=7, tokens=900, output=80)
    assert ours.within(theirs) == Limits(requests=7, tokens=500, output=80, in_flight=3)
