"""The keywords of JSON schemas, each counted before it judges; those that take long, of our own."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from promptstack.services.runs.json_schema.meter import (
    VALUES_A_STEP,
    Judge,
    JudgeType,
    Keyword,
    Meter,
)
from promptstack.services.runs.json_schema.patterns import Patterns

HASHED = ("uniqueItems", "enum", "const")
UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")
STEPS_A_REFERENCE = 10


def metered(kind: JudgeType, meter: Meter, patterns: Patterns) -> JudgeType:
    """The same judge, which counts what it does and does nothing that takes long for its count."""
    keywords: dict[str, Keyword] = {
        **kind.VALIDATORS,
        **patterns.keywords(kind.VALIDATORS["additionalProperties"]),
        "uniqueItems": unique_items,
        "enum": partial(_enum, {}),
        "not": _not,
        "anyOf": _any_of,
        "oneOf": _one_of,
    }
    if "const" in keywords:
        keywords["const"] = _const
    for name in UNEVALUATED:
        if name in keywords:
            keywords[name] = _unevaluated(meter, keywords[name])
    return extend(  # type: ignore[no-untyped-call]
        kind,
        {name: _counted(meter, name, judge) for name, judge in keywords.items()},
        type_checker=kind.TYPE_CHECKER.redefine("boolean", partial(_is_boolean, meter)),
    )


def _counted(meter: Meter, name: str, keyword: Keyword) -> Keyword:
    def count(judge: Judge, rule: Any, value: Any, schema: Any) -> Iterable[ValidationError] | None:
        size = meter.size(value)
        steps = 1 + size // VALUES_A_STEP + _handed_on(name, rule, value)
        if isinstance(rule, list | dict):
            steps += len(rule) // VALUES_A_STEP
        if name in HASHED:
            steps += size // 2
        meter.take(steps)
        return keyword(judge, rule, value, schema)

    return count


def _handed_on(name: str, rule: Any, value: Any) -> int:
    """How many values a keyword hands on to the rules for them, which may be none."""
    match name:
        case "allOf" | "anyOf" | "oneOf" | "dependentSchemas" | "dependencies":
            return len(rule)
        case "$ref" | "$dynamicRef" | "$recursiveRef":
            return STEPS_A_REFERENCE
        case "properties" | "prefixItems" if isinstance(value, list | dict):
            return min(len(rule), len(value))
        case (
            "items"
            | "additionalItems"
            | "contains"
            | "unevaluatedItems"
            | "propertyNames"
            | "patternProperties"
            | "additionalProperties"
            | "unevaluatedProperties"
        ) if isinstance(value, list | dict):
            return len(value)
        case _:
            return 0


def _enum(
    known: dict[int, frozenset[Any]], _: Judge, rule: list[Any], value: Any, __: Any
) -> Iterator[ValidationError]:
    """Whether a value is one of the rule's, which are hashed once; the library compares each."""
    members = known.get(id(rule))
    if members is None:
        members = known[id(rule)] = frozenset(map(_hashed, rule))
    if _hashed(value) not in members:
        yield ValidationError("is none of the values")


def _const(_: Judge, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if _hashed(value) != _hashed(rule):
        yield ValidationError("is not the value")


def unique_items(_: Judge, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    """Whether all members differ; the library compares each with each."""
    if rule is True and isinstance(value, list) and len(set(map(_hashed, value))) < len(value):
        yield ValidationError("has members that are the same")


def _hashed(value: Any) -> Any:
    """The same for the same JSON value, and for no other: 1 is 1.0, and not true.

    Of numbers it holds the digits: one can choose thousands of numbers of the same hash.
    """
    match value:
        case bool():
            return (value,)
        case int():
            return ("number", str(value))
        case float():
            return ("number", str(int(value)) if value.is_integer() else repr(value))
        case list():
            return ("list", *map(_hashed, value))
        case dict():
            return frozenset((name, _hashed(inner)) for name, inner in value.items())
        case _:
            return value


def _not(judge: Judge, rule: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    if _holds(judge, rule, value):
        yield ValidationError("is valid under the schema")


def _any_of(judge: Judge, rule: list[Any], value: Any, _: Any) -> Iterator[ValidationError]:
    """The library's own keeps every error of every schema, each with a copy of the value."""
    if not any(_holds(judge, schema, value) for schema in rule):
        yield ValidationError("is not valid under any of the schemas")


def _one_of(judge: Judge, rule: list[Any], value: Any, _: Any) -> Iterator[ValidationError]:
    """As `_any_of`; it ends at the second one that holds."""
    held = 0
    for schema in rule:
        held += _holds(judge, schema, value)
        if held > 1:
            break
    if held != 1:
        yield ValidationError("is not valid under exactly one of the schemas")


def _holds(judge: Judge, schema: Any, value: Any) -> bool:
    return next(judge.descend(value, schema), None) is None


def _unevaluated(meter: Meter, keyword: Keyword) -> Keyword:
    """The library looks for what was judged part by part, and keeps it in a list.

    That list is looked through for each member of the value: so each part costs its share.
    """

    def look(judge: Judge, rule: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
        outer, meter.width = meter.width, len(value) if isinstance(value, list | dict) else 0
        try:
            yield from keyword(judge, rule, value, schema) or ()
        finally:
            meter.width = outer

    return look


def _is_boolean(meter: Meter, _: Any, value: Any) -> bool:
    """Count what `_unevaluated` looks at: of each part, the library asks whether it is a boolean.

    Of values of the answer it asks that too, which `type` has counted.
    """
    if meter.width and meter.is_schema(value):
        meter.take(1 + meter.width + meter.width**2 // VALUES_A_STEP)
    return isinstance(value, bool)
