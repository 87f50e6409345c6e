"""Odd records: any number, text, nesting and name in any field; and what must come of each."""

import json
import math
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from promptstack.services.text import MAX_INTEGER_BITS, MAX_JSON_DEPTH

ODD_NUMBERS = (
    "6.02214076e23", "1e400", "-1e400", "1e-320", "1e-400", "1e308", "1.7976931348623157e308",
    "1.8e308", "-0", "-0.0", "0e0", "0e999", "1.0", "1", "1e0", "1E5", "1e16", "1e+22", "100e-2",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "18446744073709551615",
    "18446744073709551616", "-9223372036854775809", "123456789012345678901234567890",
    "0.1234567890123456789", "123456789012345678.25", "NaN", "Infinity", "-Infinity",
    "9" * 308, "9" * 309, "1" + "0" * 400, "8" * 4_299, "8" * 5_000, "1e99999", "1e-99999",
    "1" + "0" * 400 + "e-400",
)  # fmt: skip
ODD_TEXTS = (
    '"\\u0000"', '"a\\ud800b"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\": 1e30, \\"a\\":"',
    '"1e30"', '"\\\\"', '"\\u2028"', '"\x7f"', '"=1+1"', '"\\r\\n"', '"12345678901234567890"',
    '""', '" : "', '"NaN"',
)  # fmt: skip
ODD_NAMES = ('"a"', '"b"', '""', '"1"', '"a\\u0000"', '"\\ud800"', '"a\\":"', '" "', '"1e30"')

numbers = st.one_of(
    st.sampled_from(ODD_NUMBERS),
    st.integers().map(str),
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.tuples(st.integers(), st.integers(0, 10**20), st.integers(-340, 320)).map(
        lambda parts: f"{parts[0]}.{parts[1]}e{parts[2]}"
    ),
)
texts = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=8).map(json.dumps),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
)
names = st.one_of(st.sampled_from(ODD_NAMES), texts)
colons = st.sampled_from([":", ": ", " :", "\t:\t"])
plain = st.one_of(numbers, numbers, texts, st.sampled_from(["true", "false", "null"]))
nested = st.sampled_from([2, 48, 49, 50, 51, 52, 600, 2_000]).map(lambda n: "[" * n + "]" * n)


def _list(parts: list[str]) -> str:
    return f"[{', '.join(parts)}]"


def _object(members: list[tuple[str, str, str]]) -> str:
    return f"{{{', '.join(name + colon + value for name, colon, value in members)}}}"


values = st.one_of(
    plain,
    st.recursive(
        plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(_list),
            st.lists(st.tuples(names, colons, inner), max_size=3).map(_object),
        ),
        max_leaves=5,
    ),
    nested,
)
"""JSON texts, some of them none."""
ids = st.one_of(st.none(), st.none(), plain)
asked = st.one_of(st.just('"some words"'), st.just('"some words"'), values)


@st.composite
def records(draw: st.DrawFn) -> str:
    """A line with one record."""
    members = draw(st.lists(st.tuples(names, colons, values), max_size=3))
    members.append(('"text"', draw(colons), draw(asked)))
    custom_id = draw(ids)
    if custom_id is not None:
        members.append(('"custom_id"', ":", custom_id))
    return _object(members)


class Unkept(ValueError):
    """What can't be kept, and so must be refused."""


def meant(line: str) -> dict[str, Any]:
    """A record as it was meant. Raises `Unkept`, also for what is no JSON."""
    try:
        found: dict[str, Any] = json.loads(
            line,
            parse_int=_integer,
            parse_float=_float,
            parse_constant=_constant,
            object_pairs_hook=_members,
        )
    except (ValueError, RecursionError) as error:
        raise Unkept from error
    _check(found, 0)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, an integer and a float being two things."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _integer(digits: str) -> int:
    if len(digits) > 400 or int(digits).bit_length() > MAX_INTEGER_BITS:
        raise Unkept
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number) or (number == 0 and Decimal(digits) != 0):
        raise Unkept
    return number


def _constant(name: str) -> None:
    raise Unkept


def _members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(members)) < len(members):
        raise Unkept
    return dict(members)


def _check(value: Any, depth: int) -> None:
    if depth > MAX_JSON_DEPTH:
        raise Unkept
    if isinstance(value, str) and any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise Unkept
    if isinstance(value, dict):
        for name in value:
            _check(name, depth)
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check(part, depth + 1)


def is_kept(value: str) -> bool:
    """Whether a value, given as JSON, must be taken within an object."""
    try:
        meant(f'{{"a": {value}}}')
    except Unkept:
        return False
    return True
