"""Keywords of JSON schemas. Each counts its steps first; slow ones of the library are replaced."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from promptstack.services.runs.json_schema.meter import Meter
from promptstack.services.runs.json_schema.patterns import Patterns

Validator = Any
ValidatorType = Any
"""The library's validators and their classes, of whose methods its protocol names only some."""
Keyword = Callable[[Validator, Any, Any, Any], Iterable[ValidationError] | None]
"""Validates a value by the rule that a schema has under the name of the keyword."""

HASHED = ("uniqueItems", "enum", "const")
VALUES_A_STEP = 25
"""The library quotes the value in each error, even if nobody reads it, and that takes time."""
STEPS_A_REFERENCE = 10


def metered(kind: ValidatorType, meter: Meter, patterns: Patterns) -> ValidatorType:
    """Return a validator class that counts its steps, and has no keyword slower than its count."""
    keywords: dict[str, Keyword] = {
        **kind.VALIDATORS,
        "pattern": patterns.validate,
        "uniqueItems": unique_items,
        "enum": partial(_enum, {}),
        "not": _not,
        "anyOf": _any_of,
        "oneOf": _one_of,
    }
    if "const" in keywords:
        keywords["const"] = _const
    counted = {name: _counted(meter, name, keyword) for name, keyword in keywords.items()}
    return extend(kind, counted)  # type: ignore[no-untyped-call]


def _counted(meter: Meter, name: str, keyword: Keyword) -> Keyword:
    def count(
        validator: Validator, rule: Any, value: Any, schema: Any
    ) -> Iterable[ValidationError] | None:
        size = meter.size(value)
        steps = 1 + size // VALUES_A_STEP + _handed_on(name, rule, value)
        if isinstance(rule, list | dict):
            steps += len(rule) // VALUES_A_STEP
        if name in HASHED:
            steps += size // 2
        meter.take(steps)
        return keyword(validator, rule, value, schema)

    return count


def _handed_on(name: str, rule: Any, value: Any) -> int:
    """Return how many values a keyword passes to other rules."""
    match name:
        case "allOf" | "anyOf" | "oneOf":
            return len(rule)
        case "$ref":
            return STEPS_A_REFERENCE
        case "properties" | "prefixItems" if isinstance(value, list | dict):
            return min(len(rule), len(value))
        case (
            "items" | "additionalItems" | "contains" | "propertyNames" | "additionalProperties"
        ) if isinstance(value, list | dict):
            return len(value)
        case _:
            return 0


def _enum(
    known: dict[int, frozenset[Any]], _: Validator, rule: list[Any], value: Any, __: Any
) -> Iterator[ValidationError]:
    """Check `enum` by a hash of its values. The library compares each one."""
    members = known.get(id(rule))
    if members is None:
        members = known[id(rule)] = frozenset(map(_hashed, rule))
    if _hashed(value) not in members:
        yield ValidationError("is none of the values")


def _const(_: Validator, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    if _hashed(value) != _hashed(rule):
        yield ValidationError("is not the value")


def unique_items(_: Validator, rule: Any, value: Any, __: Any) -> Iterator[ValidationError]:
    """Check that all members differ, by a hash. The library compares each with each."""
    if rule is True and isinstance(value, list) and len(set(map(_hashed, value))) < len(value):
        yield ValidationError("has members that are the same")


def _hashed(value: Any) -> Any:
    """Return equal values for equal JSON values only: 1 equals 1.0, and not true.

    Numbers are held as digits, as an attacker can choose thousands of numbers with the same hash.
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


def _not(validator: Validator, rule: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    if _holds(validator, rule, value):
        yield ValidationError("is valid under the schema")


def _any_of(validator: Validator, rule: list[Any], value: Any, _: Any) -> Iterator[ValidationError]:
    """The library's keyword keeps all errors of all schemas, each with a copy of the value."""
    if not any(_holds(validator, schema, value) for schema in rule):
        yield ValidationError("is not valid under any of the schemas")


def _one_of(validator: Validator, rule: list[Any], value: Any, _: Any) -> Iterator[ValidationError]:
    """As `_any_of`. It stops at the second schema that holds."""
    held = 0
    for schema in rule:
        held += _holds(validator, schema, value)
        if held > 1:
            break
    if held != 1:
        yield ValidationError("is not valid under exactly one of the schemas")


def _holds(validator: Validator, schema: Any, value: Any) -> bool:
    return next(validator.descend(value, schema), None) is None
