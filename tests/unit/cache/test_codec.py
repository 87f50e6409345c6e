"""What is cached comes back with its types, or is refused."""

import math
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from promptstack.services.cache.codec import Codec, NotCacheable, Unreadable


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: Decimal
    at: datetime | None = None


class Model(BaseModel):
    id: UUID
    points: list[Point]


CODEC = Codec([Colour, Point, Model])
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC))
    | st.dates()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.just(Colour.RED)
    | st.builds(Point, st.decimals(allow_nan=False), st.none() | st.datetimes())
)
KEYS = st.text(st.characters(codec="utf-8"), max_size=3) | st.just("$") | st.integers() | st.uuids()
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
        | st.frozensets(st.integers() | st.dates(), max_size=3)
    ),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """The types of a value, all the way down."""
    if isinstance(value, dict):
        return [(type(key), shape(one)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [shape(one) for one in value]
    return type(value)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    back = CODEC.load(CODEC.dump(value))
    assert back == value
    assert shape(back) == shape(value)


def test_models_come_back_as_their_class() -> None:
    model = Model(id=uuid4(), points=[Point(Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC))])
    assert CODEC.load(CODEC.dump([model, {"one": model}])) == [model, {"one": model}]
    assert math.isnan(CODEC.load(CODEC.dump(math.nan)))
    assert CODEC.load(CODEC.dump(timedelta(days=-1, microseconds=1))) == timedelta(-1, 0, 1)


@pytest.mark.parametrize(
    "value",
    [object(), Point(Decimal(1)), Colour.RED, [{"a": {1j}}], "\ud800", range(3)],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(NotCacheable):
        Codec().dump(value)


def test_endless_nesting_is_refused() -> None:
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(NotCacheable, match="nested"):
        CODEC.dump(nested)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        '{"$": "class Unknown", "v": {}}',
        '{"$": "class Point", "v": {"y": 1}}',
        '{"$": "class Point", "v": 1}',
        '{"$": "class Colour", "v": "blue"}',
        '{"$": "Decimal", "v": "one"}',
        '{"$": "date"}',
        '{"$": 1, "v": 1}',
        '{"$": ["os", "system"], "v": "true"}',
        '{"$": "dict", "v": [[[], 1]]}',
    ],
)
def test_an_entry_of_another_version_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        CODEC.load(text)


def test_two_classes_of_one_name_are_refused() -> None:
    other = type("Point", (), {"__qualname__": Point.__qualname__})
    with pytest.raises(ValueError, match="same name"):
        Codec([Point, other])
    assert CODEC.load(CODEC.dump(date(2026, 1, 2))) == date(2026, 1, 2)
