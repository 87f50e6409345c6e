import json
import socket
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Union

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.runs.json_schema.answers import AnswerSchema
from promptstack.services.validation.schema_bounds import SchemaBounds

BACKTRACKS = "^(a+)+$"
"""Python's own engine would take longer than the universe is old."""
BAD_NAME = "a" * 5_000 + "!"
BASE = "https://json-schema.org/draft/2020-12/schema"
DRAFTS = [
    "http://json-schema.org/draft-04/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-07/schema#",
    "https://json-schema.org/draft/2019-09/schema",
    BASE,
]


def answer(text: str) -> LLMResponse:
    return LLMResponse(text, "model", input_tokens=1, output_tokens=1, finish_reason="stop")


def holds(schema: dict[str, Any], value: Any) -> bool:
    return AnswerSchema(schema, SchemaBounds()).validate(answer(json.dumps(value))) is None


def refused(schema: dict[str, Any]) -> str:
    with pytest.raises(InvalidInput) as caught:
        AnswerSchema(schema, SchemaBounds())
    return str(caught.value)


def test_nothing_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        said = refused({"$ref": f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"})
        with pytest.raises(BlockingIOError):
            server.accept()
    assert "schema.json" in said
    assert "fetch" in said


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "#missing"},
        {"$ref": "other.json"},
        {"$ref": "http://["},
        {"properties": {"a": {"items": {"anyOf": [{"$ref": "#/$defs/missing"}]}}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/missing"}}}},
        {"$ref": "#/elsewhere", "elsewhere": {"items": {"$ref": "#/missing"}}},
        {"$id": "http://x.test/a", "$ref": "b"},
        {"$ref": BASE},
        {"$schema": DRAFTS[0], "$ref": 5},
    ],
)
def test_a_reference_to_nothing_is_refused(schema: dict[str, Any]) -> None:
    assert "$ref" in refused(schema)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "keyword", ["not", "allOf", "anyOf", "oneOf", "items", "additionalProperties"]
)
def test_a_reference_to_nothing_is_found_in_every_draft(draft: str, keyword: str) -> None:
    dangling = {"$ref": "#/definitions/missing"}
    refused({"$schema": draft, keyword: [dangling] if keyword.endswith("Of") else dangling})
    refused({"$schema": draft, "definitions": {"a": {"properties": {"b": dangling}}}})
    refused({"$schema": draft, "definitions": {"a": {"not": {"items": dangling}}}})


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, "x", 1),
        ({"$id": "http://x.test/a", "$ref": "#/$defs/a", "$defs": {"a": {"const": 1}}}, 1, 2),
        ({"$schema": DRAFTS[0], "id": "x", "$ref": "#/y", "y": {"enum": [1]}}, 1, 2),
        ({"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": {"const": 1}}}, 1, 2),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["b"]}, {"b": 1}, {"b": 1, "a": {}}),
        ({"$schema": DRAFTS[2], "$ref": "#/definitions/a", "definitions": {"a": {}}}, 1, None),
        # What stands in values is no reference.
        ({"enum": [{"$ref": "#/missing"}]}, {"$ref": "#/missing"}, 1),
        ({"properties": {"$ref": {"type": "string"}}}, {"$ref": "#/missing"}, {"$ref": 1}),
    ],
)
def test_references_lead_to_what_they_name(schema: dict[str, Any], good: Any, bad: Any) -> None:
    assert holds(schema, good)
    assert bad is None or not holds(schema, bad)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": {"if": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#"}}},
    ],
)
def test_a_schema_without_end_is_refused(schema: dict[str, Any]) -> None:
    assert "itself" in refused(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/elsewhere", "elsewhere": {"type": 7}},
        {"$ref": "#/elsewhere", "elsewhere": 5},
        {"$ref": "#/elsewhere/0", "elsewhere": [{"properties": 5}]},
        {"type": "nothing"},
        {"$schema": 5},
        {"$schema": "http://x.test/mine"},
        {"$schema": "http://["},
    ],
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    refused(schema)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "rule",
    [
        {"additionalProperties": {"pattern": BACKTRACKS}},
        {"allOf": [{"additionalProperties": {"pattern": BACKTRACKS}}]},
    ],
)
def test_no_pattern_holds_a_worker_up(draft: str, rule: dict[str, Any]) -> None:
    schema = {"$schema": draft, "definitions": {"rule": rule}, "$ref": "#/definitions/rule"}
    assert not holds(schema, {BAD_NAME: BAD_NAME})
    assert holds(schema, {})
    assert not holds({"propertyNames": {"pattern": BACKTRACKS}}, {BAD_NAME: 1})


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(?=a)b"},
        {"pattern": r"(a)\1"},
        {"pattern": "(("},
        {"pattern": "((a{1000}){1000}){1000}"},
        {"properties": {"a": {"propertyNames": {"pattern": "(?!a)"}}}},
        {"$ref": "#/elsewhere", "elsewhere": {"pattern": "(?=a)b"}},
    ],
)
def test_a_pattern_that_no_linear_engine_holds_is_refused(
    schema: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    assert "pattern" in refused(schema)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("inner", DRAFTS)
def test_no_part_of_a_schema_brings_other_rules_in(inner: str) -> None:
    part = {"$schema": inner, "pattern": BACKTRACKS}
    assert "$schema" in refused({"items": part})
    assert "$schema" in refused({"$ref": "#/elsewhere", "elsewhere": part})


RULES: dict[str, Any] = {
    "$anchor": "a",
    "$dynamicAnchor": "a",
    "$dynamicRef": "#a",
    "$recursiveAnchor": True,
    "$recursiveRef": "#",
    "dependencies": {"a": {}},
    "dependentSchemas": {"a": {}},
    "patternProperties": {"a": {}},
    "unevaluatedItems": False,
    "unevaluatedProperties": False,
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("name", [*RULES, "$id"])
def test_a_keyword_that_is_not_judged_is_refused_by_name(draft: str, name: str) -> None:
    part = {name: RULES.get(name, "http://x.test/part")}
    if name == "$id" and draft == DRAFTS[0]:
        part = {"id": "http://x.test/part"}
    if name == "$recursiveAnchor" and draft == BASE:
        part = {name: "a"}
    keyword = next(iter(part))
    inner: list[dict[str, Any]] = [
        {"properties": {"a": part}},
        {"definitions": {"a": part}},
        {"anyOf": [{"type": "null"}, {"additionalProperties": part}]},
        {"$ref": "#/elsewhere", "elsewhere": part},
    ]
    if name != "$id":
        inner.append(part)
    for schema in inner:
        assert f"keyword {keyword}," in refused({"$schema": draft, **schema})
    # A property may have any name, and a value may be anything.
    value = {keyword: "x"}
    named: dict[str, Any] = {"properties": {keyword: {"type": "string"}}, "enum": [value]}
    assert holds({"$schema": draft, **named}, value)


class Side(StrEnum):
    LEFT = "left"
    RIGHT = "right"


class Leaf(BaseModel):
    kind: Literal["leaf"]
    word: str = Field(pattern="^[a-z]+$", min_length=2, max_length=9)
    day: date | None = None


class Node(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: Literal["node"]
    side: Side
    score: float = Field(ge=0, lt=1, multiple_of=0.25)
    pair: tuple[int, str]
    labels: dict[str, int] = Field(default_factory=dict, max_length=3)
    inner: list[Annotated[Union["Node", Leaf], Field(discriminator="kind")]] = Field(max_length=2)


LEAF = {"kind": "leaf", "word": "abc", "day": "2026-01-31"}
NODE = {"kind": "node", "side": "left", "score": 0.25, "pair": [1, "x"], "labels": {}, "inner": []}


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "leaf"},
        {"side": "up"},
        {"score": 1},
        {"score": 0.3},
        {"pair": [1, "x", 2]},
        {"labels": {"a": "b"}},
        {"inner": [LEAF] * 3},
        {"inner": [{**LEAF, "word": "ABC"}]},
        {"inner": [{**NODE, "side": None}]},
        {"more": 1},
    ],
)
def test_the_schema_of_a_pydantic_model_judges_as_the_model(wrong: dict[str, Any]) -> None:
    schema = Node.model_json_schema()
    assert {"$defs", "$ref"} <= schema.keys()
    good, bad = {**NODE, "inner": [LEAF, NODE]}, {**NODE, **wrong}
    Node.model_validate_json(json.dumps(good))
    with pytest.raises(ValidationError):
        Node.model_validate_json(json.dumps(bad))
    assert holds(schema, good)
    assert not holds(schema, bad)


STRICT = {
    "type": "object",
    "properties": {"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"$ref": "#/$defs/b"}]}},
    "required": ["a", "b"],
    "additionalProperties": False,
    "$defs": {"b": {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1}},
}


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (STRICT, {"a": None, "b": [1]}, {"a": None, "b": [0]}),
        # As zod writes what comes twice, and a tuple.
        (
            {
                "$schema": DRAFTS[2],
                "properties": {
                    "a": {"type": "string", "format": "email"},
                    "b": {"$ref": "#/properties/a"},
                    "c": {"type": "array", "items": [{"type": "integer"}], "additionalItems": {}},
                },
            },
            {"b": "x@y.z", "c": [1, "x"]},
            {"b": 1},
        ),
        # As Go's and .NET's generators begin.
        (
            {
                "$schema": BASE,
                "$id": "https://x.test/a",
                "$ref": "#/$defs/A",
                "$defs": {"A": STRICT},
            },
            {"a": "x"},
            [],
        ),
        (
            {"$schema": DRAFTS[0], "title": "A", "minimum": 1, "exclusiveMinimum": True},
            2,
            1,
        ),
    ],
)
def test_schemas_as_other_clients_write_them_are_taken(
    schema: dict[str, Any], good: Any, bad: Any
) -> None:
    if "$id" in schema:
        schema = json.loads(json.dumps(schema).replace("#/$defs/b", "#/$defs/A/$defs/b"))
        good = {**good, "b": [1]}
    assert holds(schema, good)
    assert not holds(schema, bad)


def test_patterns_find_what_they_name() -> None:
    assert holds({"pattern": "b+"}, "abc")
    assert not holds({"pattern": "^b"}, "abc")
    assert holds({"pattern": "^b"}, 1)
    named = {"propertyNames": {"pattern": "^x_"}, "additionalProperties": {"type": "integer"}}
    assert holds(named, {"x_a": 1})
    assert not holds(named, {"x_a": "no integer"})
    assert not holds(named, {"y": 1})
    assert not holds({"pattern": "^a$"}, "\ud800")


SECRET = "whatsaid"


@pytest.mark.parametrize(
    ("schema", "value", "where"),
    [
        ({"additionalProperties": {"type": "null"}}, {SECRET: 1}, "*"),
        ({"additionalProperties": {"items": {"enum": []}}}, {SECRET: [1]}, "*/0"),
        ({"additionalProperties": False}, {SECRET: 1}, "the whole"),
        ({"propertyNames": {"maxLength": 1}}, {SECRET: 1}, "the whole"),
        ({"items": {"properties": {"a": {"type": "null"}}}}, [{"a": 1}], "0/a"),
        ({"items": {"properties": {"a": False}}}, [{"a": SECRET}], "0"),
        ({"const": 1}, SECRET, "the whole"),
    ],
)
def test_an_error_says_where_without_quoting_the_answer(
    schema: dict[str, Any], value: Any, where: str
) -> None:
    fault = AnswerSchema(schema, SchemaBounds()).validate(answer(json.dumps(value)))
    assert fault is not None
    assert str(fault).endswith(f" at {where}.")
    assert SECRET not in str(fault)
    assert "None" not in str(fault)
    assert fault.detail == json.dumps(value)


@pytest.mark.parametrize("depth", [100, 400, 900, 100_000])
def test_a_deep_answer_is_an_answer_that_does_not_fit(depth: int) -> None:
    schema = AnswerSchema({"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]}, SchemaBounds())
    deep = answer("[" * depth + "]" * depth)
    fault = schema.validate(deep)
    assert fault is None or "nested" in str(fault) or "no JSON" in str(fault)
    if fault is None:
        schema.read(deep)


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5_000):
        schema = {"items": schema}
    assert "nested" in refused(schema)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "1e999", "-1e999", "NaN", "Infinity"])
def test_a_number_that_is_too_large_is_an_answer_that_does_not_fit(number: str) -> None:
    assert AnswerSchema({"multipleOf": 0.01}, SchemaBounds()).validate(answer(number)) is not None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e-999", "NaN", "9" * 400, "9" * 5_000])
def test_a_number_out_of_range_is_a_mismatch_that_is_shown_with_the_answer(number: str) -> None:
    said = f'{{"n": [1, {number}]}}'
    fault = AnswerSchema({"type": "object"}, SchemaBounds()).validate(answer(said))
    assert "The answer has" in str(fault)
    assert fault is not None
    assert fault.detail == said


def test_large_numbers_of_an_answer_are_kept() -> None:
    said = answer('{"n": 6.02e23, "m": 123456789012345678901234567890, "n2": 1e300, "n": 1.0}')
    schema = AnswerSchema({"additionalProperties": {"type": "number"}}, SchemaBounds())
    assert schema.validate(said) is None
    assert schema.read(said) == {"n": 1.0, "m": 123456789012345678901234567890, "n2": 1e300}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab#/", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#a", "#/properties/a", "#/x", BASE])
SELDOM = st.sampled_from([{}] * 60 + [{name: rule} for name, rule in RULES.items()])
"""A keyword that is refused, so seldom that most schemas are judged by."""


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    known = st.fixed_dictionaries(
        {},
        optional={
            "$ref": REFERENCES,
            "$schema": st.sampled_from(DRAFTS),
            "$defs": named,
            "x": inner,
            "properties": named,
            "additionalProperties": inner,
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "allOf": st.lists(inner, min_size=1, max_size=2),
            "oneOf": st.lists(inner, min_size=1, max_size=2),
            "if": inner,
            "then": inner,
            "contains": inner,
            "multipleOf": st.sampled_from([0.01, 2]),
            "type": st.sampled_from(["object", "array", "string", "x"]),
            "uniqueItems": st.booleans(),
            "pattern": st.sampled_from(["a", BACKTRACKS, "(?=a)"]),
        },
    )
    return st.tuples(known, SELDOM).map(lambda two: two[0] | two[1])


@settings(max_examples=300, deadline=timedelta(seconds=5))
@given(
    st.recursive(st.booleans() | st.integers(0, 1), keywords, max_leaves=6).filter(
        lambda schema: isinstance(schema, dict)
    ),
    VALUES,
)
def test_a_schema_is_refused_or_judges_every_answer(schema: dict[str, Any], value: Any) -> None:
    try:
        accepted = AnswerSchema(schema, SchemaBounds())
    except InvalidInput:
        return
    said = json.dumps(value)
    fault = accepted.validate(answer(said))
    if "NaN" in said or "Infinity" in said:
        assert "JSON" in str(fault)
    # Where a validator needs neither our engine for patterns nor our reading of references.
    elif not {"pattern", "$ref"} & words(schema):
        validator = validator_for(schema, Draft202012Validator)(schema)
        assert (fault is None) is validator.is_valid(value)


def words(schema: Any) -> set[str]:
    """All names in a schema."""
    if isinstance(schema, dict):
        return set(schema).union(*map(words, schema.values()))
    return set().union(*map(words, schema)) if isinstance(schema, list) else set()
