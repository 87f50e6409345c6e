"""Keys of cached calls: the same for the same call, readable, and never those of another call."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptstack.repositories.usage import Group
from promptstack.services.cache.keys import MAX_KEY_CHARACTERS, CallKeys, shortened


def sums(by: Any, since: Any = None, *, user: Any = None) -> None:
    pass


class Service:
    def read(self, number: int) -> None:
        pass


def key(*arguments: Any, **named: Any) -> str:
    return CallKeys(sums, None, ()).of(arguments, named)


def test_a_key_is_readable_and_the_same_however_it_is_called() -> None:
    user = UUID(int=1)
    groups = [Group.DAY, Group.MODEL]
    expected = f"{sums.__module__}.sums(by=[Group.DAY,Group.MODEL],since=None,user={user})"
    assert key(groups, None, user=user) == expected
    assert key(by=tuple(groups), user=user) == expected


def test_an_object_is_no_part_of_the_key_of_its_method() -> None:
    keys = CallKeys(Service.read, None, ())
    assert keys.of((Service(), 1), {}) == keys.of((Service(),), {"number": 1})
    assert keys.of((Service(), 1), {}).endswith("Service.read(number=1)")


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, "1"), (1, True), (1, 1.0), (None, "None"), ("a,b", ["a", "b"]), (b"a", "a"), ({1}, [1])],
)
def test_values_that_differ_have_keys_that_differ(one: Any, other: Any) -> None:
    assert key(one) != key(other)


def test_equal_values_have_one_key() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    assert key(noon) == key(noon.astimezone(timezone(timedelta(hours=5))))
    assert key({"b": 1, "a": Decimal(2)}) == key({"a": Decimal(2), "b": 1})
    assert key({"b", "a", "c"}) == key(frozenset("cab"))


def test_a_key_can_be_given_and_arguments_left_out() -> None:
    keys = CallKeys(sums, "sums of {user} by {by}", ())
    assert keys.of((["x"],), {"user": "ada"}) == "sums of ada by ['x']"
    assert "since" not in CallKeys(sums, None, ["since"]).of(([1], object()), {})
    with pytest.raises(TypeError, match="not stable"):
        key(object())
    with pytest.raises(TypeError, match="no argument owner"):
        CallKeys(sums, "{owner}", ())
    with pytest.raises(TypeError, match="no argument owner"):
        CallKeys(sums, None, ["owner"])


@given(st.text(max_size=500))
def test_a_key_is_short_and_of_one_line(text: str) -> None:
    short = shortened(key(text))
    assert len(short) <= MAX_KEY_CHARACTERS
    assert short.isprintable()
    assert short == shortened(key(text))
    assert shortened("a" * 500) != shortened("a" * 501)
