"""No schema of a caller, and no answer judged by one, takes work without a bound."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptstack.config.settings import Settings
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.runs.json_schema.answers import (
    AnswerMismatch,
    AnswerNotJudged,
    AnswerSchema,
)
from promptstack.services.validation.schema_bounds import SchemaBounds
from promptstack.tasks.from_settings import schema_bounds
from tests.unit.runs.test_schemas import DRAFTS, keywords

BOUNDS = SchemaBounds()
SLOW_SECONDS = 20.0
"""Far less than each of these took, and far more than it takes now."""


def answer(value: Any) -> LLMResponse:
    text = json.dumps(value)
    return LLMResponse(text, "model", input_tokens=1, output_tokens=1, finish_reason="stop")


def refused(schema: Any, bounds: SchemaBounds = BOUNDS) -> str:
    with pytest.raises(InvalidInput) as caught:
        AnswerSchema(schema, bounds)
    return str(caught.value)


def bomb(levels: int, keyword: str = "allOf") -> dict[str, Any]:
    """Each level judges by the next one twice."""
    definitions: dict[str, Any] = {
        f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(levels)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {"type": "integer"}}}


def named(count: int) -> dict[str, Any]:
    return {f"p{n}": {"type": "string"} for n in range(count)}


def nested(levels: int, inner: Any) -> Any:
    for _ in range(levels):
        inner = {"items": inner}
    return inner


def by_references(levels: int) -> dict[str, Any]:
    definitions = {f"d{n}": {"items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(levels)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{levels}": {}}}


TOO_MUCH: dict[str, Callable[[int], Any]] = {
    "nodes": lambda most: {"allOf": [{}] * most},
    "characters": lambda most: {"title": "x" * most},
    "properties": lambda most: {"properties": named(most + 1)},
    "enum_members": lambda most: {"enum": list(range(most)), "not": {"enum": [0]}},
    "patterns": lambda most: {"allOf": [{"pattern": f"^{n}"} for n in range(most + 1)]},
    "pattern_characters": lambda most: {"pattern": "x" * (most + 1)},
    "patterns_characters": lambda most: {
        "allOf": [{"pattern": "x" * 1_000}] * (most // 1_000) + [{"pattern": "x"}]
    },
    "depth": lambda most: nested(most + 1, {}),
    "expanded": lambda most: bomb(most.bit_length()),
}


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_schema_beyond_a_bound_is_refused_by_its_setting(name: str) -> None:
    said = refused(TOO_MUCH[name](getattr(BOUNDS, name)))
    assert f"MAX_SCHEMA_{name.upper()}" in said
    assert f"MAX_SCHEMA_{name.upper()}".lower() in Settings.model_fields
    assert f"{getattr(BOUNDS, name):,}" in said


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_bound_is_a_setting_and_what_is_within_it_is_taken(name: str) -> None:
    most = 8 if name == "depth" else 1_000
    bounds = replace(BOUNDS, **{name: most})
    assert f"{most:,}" in refused(TOO_MUCH[name](most), bounds)
    AnswerSchema(TOO_MUCH[name](most // 8), bounds)


def test_the_settings_say_what_holds_without_them() -> None:
    assert schema_bounds(Settings(_env_file=None)) == BOUNDS


def test_forty_levels_of_two_references_are_refused_at_once() -> None:
    schema = bomb(40)
    assert len(json.dumps(schema)) < 3_500
    assert "counted at each reference" in refused(schema)


@pytest.mark.parametrize(
    "schema",
    [
        bomb(40, "anyOf"),
        bomb(40, "oneOf"),
        {"$ref": "#/$defs/d0", "$defs": by_references(5_000)["$defs"]},
        by_references(60),
        {"properties": bomb(30)["$defs"], "$defs": bomb(30)["$defs"]},
        {"$defs": {"a": nested(40, {})}, "items": nested(40, {"$ref": "#/$defs/a"})},
    ],
)
def test_what_references_lead_to_is_counted_each_time(schema: dict[str, Any]) -> None:
    said = refused(schema)
    assert "MAX_SCHEMA_" in said


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}, {"left": {"right": {}}}),
        ({"items": {"$ref": "#"}, "$defs": bomb(40)["$defs"]}, [[], [[]]]),
        (by_references(20), [[1]]),
        (bomb(8), 7),
    ],
)
def test_references_back_and_those_that_are_few_are_taken(
    schema: dict[str, Any], value: Any
) -> None:
    assert AnswerSchema(schema, BOUNDS).validate(answer(value)) is None


class Untouched(list[Any]):
    """Has many members, and fails who looks at one."""

    def __len__(self) -> int:
        return 10**9

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("It is too long to look at.")


def test_nothing_is_looked_at_beyond_the_first_bound() -> None:
    assert "MAX_SCHEMA_NODES" in refused({"anyOf": Untouched()})
    assert "MAX_SCHEMA_ENUM" in refused({"enum": list(range(5_000)), "allOf": [Untouched()]})


def test_a_pattern_of_100_000_alternatives_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("re2.compile", lambda *_: pytest.fail("It is compiled."))
    alternatives = "|".join(f"word{n}" for n in range(100_000))
    assert "MAX_SCHEMA_PATTERN_CHARACTERS" in refused({"pattern": alternatives})
    assert "MAX_SCHEMA_PATTERN_CHARACTERS" in refused({"patternProperties": {alternatives: {}}})


@pytest.mark.parametrize(r"pattern", [r"\pL{1000}", r"(?i)" + "k{1000}" * 100, "x{1000}" * 100])
def test_a_short_pattern_that_becomes_a_large_program_is_refused_soon(pattern: str) -> None:
    begun = time.thread_time()
    assert "pattern" in refused({"pattern": pattern})
    assert time.thread_time() - begun < 1.0


def test_twenty_thousand_properties_are_refused_and_a_thousand_are_taken() -> None:
    assert "MAX_SCHEMA_PROPERTIES" in refused({"properties": named(20_000)})
    schema = AnswerSchema({"properties": named(1_000)}, BOUNDS)
    assert schema.validate(answer({"p999": "x"})) is None


def test_what_references_lead_to_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # Each level has as many references as the whole has parts.
    inner: dict[str, Any] = {"type": "string"}
    pointers = []
    for level in range(12):
        inner = {"properties": {"p": inner}}
        pointers.append({"$ref": "#/$defs/a" + "/properties/p" * level})
    schema = {"$defs": {"a": inner}, "anyOf": pointers * 80}
    begun = time.thread_time()
    AnswerSchema(schema, replace(BOUNDS, expanded=10**9))
    assert time.thread_time() - begun < 5.0


@pytest.mark.parametrize("draft", DRAFTS)
@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "type",
                "items",
                "properties",
                "required",
                "allOf",
                "enum",
                "minLength",
                "pattern",
                "additionalProperties",
                "definitions",
                "$ref",
                "$id",
                "id",
                "minimum",
                "const",
                "exclusiveMinimum",
                "$anchor",
                "contains",
                "if",
                "uniqueItems",
            ]
        ),
        st.sampled_from(
            json.loads(
                '[1, -1, 0.5, true, null, "x", "string", [], ["a"], ["a", "a"], [{}], {}, [5], '
                '["null"], {"x": {}}, {"x": 5}, {"x": ["y"]}, {"x": {"type": 7}}, '
                '[{"minLength": -1}], [true]]'
            )
        ),
        max_size=3,
    )
)
def test_a_form_is_one_as_the_library_has_it(draft: str, schema: dict[str, Any]) -> None:
    kind: Any = jsonschema.validators.validator_for({"$schema": draft})
    has_form = True
    try:
        kind.check_schema(schema, format_checker=None)
    except jsonschema.SchemaError:
        has_form = False
    said = ""
    try:
        AnswerSchema({"$schema": draft, **schema}, BOUNDS)
    except InvalidInput as error:
        said = str(error)
    if has_form:
        assert "no JSON schema" not in said
    else:
        # Of several faults, a keyword that can't be judged is told first.
        assert "no JSON schema" in said or "has the keyword" in said, said


WITHIN = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(-2, 2) | st.text("ab", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=6,
)


def more_keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    compared = st.fixed_dictionaries(
        {},
        optional={
            "enum": st.lists(WITHIN, min_size=1, max_size=3),
            "const": WITHIN,
            "not": inner,
            "anyOf": st.lists(inner, min_size=1, max_size=3),
            "oneOf": st.lists(inner, min_size=1, max_size=3),
            "propertyNames": inner,
            "uniqueItems": st.booleans(),
        },
    )
    both = st.tuples(keywords(inner), compared)
    return compared | both.map(lambda two: two[0] | two[1])


SCHEMAS = st.recursive(st.booleans(), more_keywords, max_leaves=8).filter(
    lambda schema: isinstance(schema, dict)
)


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, WITHIN)
def test_answers_are_judged_as_the_library_does(schema: dict[str, Any], value: Any) -> None:
    try:
        accepted = AnswerSchema(schema, BOUNDS)
    except InvalidInput:
        return
    kind: Any = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
    assert (accepted.validate(answer(value)) is None) == kind(schema).is_valid(value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"enum": [1, [True]]}, [1, 1.0, [True]], [True, [1], "1", 2]),
        ({"const": {"a": [0]}}, [{"a": [0.0]}], [{"a": [False]}, {"a": 0}, {}]),
        ({"uniqueItems": True}, [[1, True, "1", [1]], [{}, []]], [[1, 1.0], [{"a": [1]}] * 2]),
        ({"enum": [1e300, "x"]}, [10**300 * 1.0], [10**300 + 1]),
    ],
)
def test_a_number_is_what_it_is_worth_and_no_boolean(
    schema: dict[str, Any], good: list[Any], bad: list[Any]
) -> None:
    accepted = AnswerSchema(schema, BOUNDS)
    assert [accepted.validate(answer(value)) for value in good] == [None] * len(good)
    assert all(isinstance(accepted.validate(answer(value)), AnswerMismatch) for value in bad)


def steps_of(schema: dict[str, Any], value: Any, bounds: SchemaBounds = BOUNDS) -> tuple[int, int]:
    """The steps that are counted for an answer, and the calls of Python's that it really takes."""
    accepted, given = AnswerSchema(schema, bounds), answer(value)
    calls = 0

    def count(_: Any, event: str, __: Any) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        fault = accepted.validate(given)
    finally:
        sys.setprofile(before)
    if accepted.steps > bounds.judging_steps:
        assert isinstance(fault, AnswerNotJudged)
    return accepted.steps, calls


@settings(max_examples=300, deadline=None)
@given(SCHEMAS, WITHIN)
def test_any_schema_is_refused_or_judges_within_its_steps(
    schema: dict[str, Any], value: Any
) -> None:
    bounds = replace(BOUNDS, judging_steps=50)
    try:
        steps, calls = steps_of(schema, value, bounds)
    except InvalidInput:
        return
    # What is read, measured and put into words takes as much as the answer is long.
    assert calls <= 60 * min(steps, 50) + 20 * len(json.dumps(value)) + 600


MANY = {str(n): 1 for n in range(20_000)}
DEEP = json.loads("[" * 60 + "]" * 60)
HARD: dict[str, tuple[dict[str, Any], Any]] = {
    "twelve levels": (bomb(12), 1),
    "itself twice": ({"items": {"allOf": [{"$ref": "#"}] * 2}}, DEEP),
    "all of a long list": ({"allOf": [{"items": {"type": "integer"}}] * 1_000}, [1] * 10_000),
    "any of a long list": ({"anyOf": [{"items": {"type": "string"}}] * 1_000}, [1] * 100_000),
    "any of a long text": ({"anyOf": [{"type": "integer"}] * 3_000}, "x" * 1_000_000),
    "empty rules": ({"allOf": [{"items": {}}] * 100}, [1] * 50_000),
    "many properties of nothing": ({"items": {"properties": named(999)}}, [{}] * 50_000),
    "unlike objects": ({"uniqueItems": True}, [{"a": n, "b": [n]} for n in range(20_000)]),
    "unlike kinds": ({"uniqueItems": True}, [n if n % 2 else str(n) for n in range(50_000)]),
    "numbers of one hash": (
        {"uniqueItems": True, "items": {"enum": [0]}},
        [n * (2**61 - 1) for n in range(30_000)],
    ),
    "long numbers": (
        {"allOf": [{"uniqueItems": True}] * 3_000},
        [10**4_000 + n for n in range(250)],
    ),
    "contains": ({"contains": {"const": 7}}, [1] * 200_000),
    "an enum of objects": (
        {"items": {"enum": [{"a": [n] * 5} for n in range(900)]}},
        [{"a": [899] * 5}] * 5_000,
    ),
    "names": ({"propertyNames": {"maxLength": 9}, "additionalProperties": {"minimum": 0}}, MANY),
    "patterns of names": (
        {"propertyNames": {"allOf": [{"pattern": f"^[0-9]x*{n}?"} for n in range(99)]}},
        MANY,
    ),
    "a long program on a long text": ({"pattern": "a[ab]{900}c"}, "ab" * 500_000),
    "a pointer": ({"items": {"$ref": "#/$defs/p0"}, "$defs": named(900)}, [1] * 20_000),
    "not not": ({"not": {"not": {"const": [1] * 9_000}}}, [1] * 9_000),
}


@pytest.mark.parametrize("name", HARD)
def test_no_answer_takes_longer_than_its_budget(name: str) -> None:
    schema, value = HARD[name]
    accepted, given = AnswerSchema(schema, BOUNDS), answer(value)
    begun = time.thread_time()
    fault = accepted.validate(given)
    assert time.thread_time() - begun < SLOW_SECONDS
    if accepted.steps > BOUNDS.judging_steps:
        assert isinstance(fault, AnswerNotJudged)


def test_what_cannot_be_judged_says_so_and_keeps_the_answer() -> None:
    accepted = AnswerSchema(bomb(10), replace(BOUNDS, judging_steps=100))
    fault = accepted.validate(answer(1))
    assert isinstance(fault, AnswerNotJudged)
    assert (fault.code, fault.transient, fault.detail) == ("ANSWER_NOT_JUDGED", False, "1")
    assert "MAX_JUDGING_STEPS" in str(fault)
    # The next one begins anew.
    assert AnswerSchema(bomb(3), BOUNDS).validate(answer(1)) is None


@pytest.mark.parametrize("most", [1, 40, 150, 1_000])
def test_not_one_step_is_done_beyond_the_most(most: int) -> None:
    whole = AnswerSchema(bomb(10), BOUNDS)
    assert whole.validate(answer(1)) is None
    exact = AnswerSchema(bomb(10), replace(BOUNDS, judging_steps=whole.steps))
    assert exact.validate(answer(1)) is None
    short = AnswerSchema(bomb(10), replace(BOUNDS, judging_steps=whole.steps - most))
    assert isinstance(short.validate(answer(1)), AnswerNotJudged)


def test_judging_ends_by_time_too() -> None:
    accepted = AnswerSchema(bomb(12), replace(BOUNDS, judging_seconds=0.001))
    fault = accepted.validate(answer(1))
    assert isinstance(fault, AnswerNotJudged)
    assert accepted.steps < BOUNDS.judging_steps / 2
