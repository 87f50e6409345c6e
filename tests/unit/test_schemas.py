import json
import socket
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promptstack.services.errors import InvalidInput
from promptstack.services.llm.base import LLMResponse
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
    return AnswerSchema(schema, SchemaBounds()).fault(answer(json.dumps(value))) is None


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
        {"$dynamicRef": "#missing"},
        {"properties": {"a": {"items": {"anyOf": [{"$ref": "#/$defs/missing"}]}}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"not": {"$ref": "#/$defs/missing"}}}},
        {"$ref": "#/elsewhere", "elsewhere": {"items": {"$ref": "#/missing"}}},
        {"$id": "http://x.test/a", "$ref": "b"},
        {"$defs": {"a": {"$id": "http://x.test/a", "$ref": "#/$defs/b"}, "b": {}}},
        {"$schema": DRAFTS[0], "$ref": 5},
    ],
)
def test_a_reference_to_nothing_is_refused(schema: dict[str, Any]) -> None:
    assert "$ref" in refused(schema) or "$dynamicRef" in refused(schema)


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize(
    "keyword", ["not", "allOf", "anyOf", "oneOf", "items", "additionalProperties"]
)
def test_a_reference_to_nothing_is_found_in_every_draft(draft: str, keyword: str) -> None:
    dangling = {"$ref": "#/definitions/missing"}
    refused({"$schema": draft, keyword: [dangling] if keyword.endswith("Of") else dangling})
    refused({"$schema": draft, "definitions": {"a": {"properties": {"b": dangling}}}})
    refused({"$schema": draft, "patternProperties": {"b": dangling}})


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}}, "x", 1),
        ({"$ref": "#b", "$defs": {"a": {"$anchor": "b", "type": "string"}}}, "x", 1),
        ({"$dynamicRef": "#b", "$defs": {"a": {"$dynamicAnchor": "b", "minimum": 2}}}, 2, 1),
        (
            {
                "$id": "http://x.test/a",
                "$ref": "b",
                "$defs": {"b": {"$id": "b", "$ref": "#/$defs/c", "$defs": {"c": {"const": 1}}}},
            },
            1,
            2,
        ),
        ({"$ref": BASE}, {"type": "string"}, {"type": "nothing"}),
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
        {"dependentSchemas": {"a": {"$ref": "#"}}},
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
        {"patternProperties": {BACKTRACKS: {}}, "additionalProperties": False},
        {"patternProperties": {BACKTRACKS: {}, "x": {}}, "additionalProperties": {"type": "null"}},
    ],
)
def test_no_pattern_holds_a_worker_up(draft: str, rule: dict[str, Any]) -> None:
    schema = {"$schema": draft, "definitions": {"rule": rule}, "$ref": "#/definitions/rule"}
    assert not holds(schema, {BAD_NAME: BAD_NAME})
    assert holds(schema, {})


@pytest.mark.parametrize(
    "schema",
    [
        {"pattern": "(?=a)b"},
        {"pattern": r"(a)\1"},
        {"pattern": "(("},
        {"pattern": "((a{1000}){1000}){1000}"},
        {"properties": {"a": {"patternProperties": {"(?!a)": {}}}}},
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


def test_patterns_beside_unevaluated_properties_are_refused() -> None:
    named: dict[str, Any] = {"patternProperties": {BACKTRACKS: {}}}
    assert "unevaluatedProperties" in refused({"allOf": [named], "unevaluatedProperties": False})
    assert not holds({"properties": {"a": {}}, "unevaluatedProperties": False}, {"b": 1})


def test_patterns_find_what_they_name() -> None:
    assert holds({"pattern": "b+"}, "abc")
    assert not holds({"pattern": "^b"}, "abc")
    schema: dict[str, Any] = {
        "properties": {"id": {}},
        "patternProperties": {"^x_": {"type": "integer"}},
        "additionalProperties": False,
    }
    assert holds(schema, {"id": "a", "x_a": 1})
    assert not holds(schema, {"x_a": "no integer"})
    assert not holds(schema, {"y": 1})
    assert not holds({"pattern": "^a$"}, "\ud800")


SECRET = "whatsaid"


@pytest.mark.parametrize(
    ("schema", "value", "where"),
    [
        ({"additionalProperties": {"type": "null"}}, {SECRET: 1}, "*"),
        ({"patternProperties": {"s": {"type": "null"}}}, {SECRET: 1}, "*"),
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
    fault = AnswerSchema(schema, SchemaBounds()).fault(answer(json.dumps(value)))
    assert fault is not None
    assert str(fault).endswith(f" at {where}.")
    assert SECRET not in str(fault)
    assert "None" not in str(fault)
    assert fault.detail == json.dumps(value)


@pytest.mark.parametrize("depth", [100, 400, 900, 100_000])
def test_a_deep_answer_is_an_answer_that_does_not_fit(depth: int) -> None:
    schema = AnswerSchema({"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]}, SchemaBounds())
    deep = answer("[" * depth + "]" * depth)
    fault = schema.fault(deep)
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
    assert AnswerSchema({"multipleOf": 0.01}, SchemaBounds()).fault(answer(number)) is not None


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e-999", "NaN", "9" * 400, "9" * 5_000])
def test_a_number_that_cannot_be_kept_does_not_fit_and_is_told_with_the_answer(number: str) -> None:
    said = f'{{"n": [1, {number}]}}'
    fault = AnswerSchema({"type": "object"}, SchemaBounds()).fault(answer(said))
    assert "The answer has" in str(fault)
    assert fault is not None
    assert fault.detail == said


def test_large_numbers_of_an_answer_are_kept() -> None:
    said = answer('{"n": 6.02e23, "m": 123456789012345678901234567890, "n2": 1e300, "n": 1.0}')
    schema = AnswerSchema({"additionalProperties": {"type": "number"}}, SchemaBounds())
    assert schema.fault(said) is None
    assert schema.read(said) == {"n": 1.0, "m": 123456789012345678901234567890, "n2": 1e300}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text("ab#/", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner),
    max_leaves=5,
)
REFERENCES = st.sampled_from(["#", "#/$defs/a", "#/$defs/b", "#a", "#/properties/a", "#/x", BASE])


def keywords(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    named = st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "$ref": REFERENCES,
            "$dynamicRef": REFERENCES,
            "$anchor": st.just("a"),
            "$id": st.sampled_from(["http://x.test/a", "b"]),
            "$schema": st.sampled_from(DRAFTS),
            "$defs": named,
            "x": inner,
            "properties": named,
            "patternProperties": named,
            "additionalProperties": inner,
            "unevaluatedProperties": inner,
            "unevaluatedItems": inner,
            "dependentSchemas": named,
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
    accepted.fault(answer(json.dumps(value)))
