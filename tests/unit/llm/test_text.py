"""What PostgreSQL can't hold is refused from callers and replaced in answers."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable, check_storable_json, make_storable

any_text = st.text(st.characters(codec=None), max_size=30)
good_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30
)
bad_character = st.sampled_from(["\x00", "\ud800", "\udbff", "\udc00", "\udfff"])
good_numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
good_json = st.recursive(
    st.one_of(st.none(), st.booleans(), good_numbers, good_text),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(good_text, inner, max_size=4)
    ),
    max_leaves=10,
)


def refuses(value: JsonValue) -> str:
    with pytest.raises(InvalidInput) as caught:
        check_storable_json(value, "An option")
    return str(caught.value)


@given(good_text)
def test_storable_text_passes_unchanged(text: str) -> None:
    assert check_storable(text, "The prompt") is text
    assert make_storable(text) == text


@given(good_text, bad_character, any_text)
def test_the_first_bad_character_is_named_by_its_position_and_nothing_is_quoted(
    before: str, bad: str, after: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_storable(before + bad + after, "The prompt")
    name = "a NUL character" if bad == "\x00" else "half of a surrogate pair"
    assert str(caught.value) == (
        f"The prompt has {name} at position {len(before)}, which cannot be stored; remove it."
    )


@given(any_text)
def test_an_answer_is_made_storable_with_nothing_else_changed(text: str) -> None:
    made = make_storable(text)
    assert check_storable(made, "The answer") == made
    assert len(made) == len(text)
    kept = [(old, new) for old, new in zip(text, made, strict=True) if old != new]
    assert all(new == "\ufffd" and (old == "\x00" or old >= "\ud800") for old, new in kept)
    assert make_storable(made) == made


@given(good_json)
def test_storable_json_passes(value: JsonValue) -> None:
    check_storable_json(value, "An option")
    assert json.loads(json.dumps(value)) == value


@given(bad_character)
def test_bad_text_is_found_at_any_depth(bad: str) -> None:
    values: list[JsonValue] = [
        bad,
        [1, [bad]],
        {"a": {"b": bad}},
        {"a": {bad: 1}},
        [{"a": [None, bad]}],
    ]
    for value in values:
        message = refuses(value)
        assert message.startswith("An option has ")
        assert bad not in message


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_found_at_any_depth(number: float) -> None:
    values: list[JsonValue] = [number, [1, [number]], {"a": [{"b": number}]}]
    for value in values:
        assert "not finite" in refuses(value)
