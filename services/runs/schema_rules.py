"""JSON schemas of callers, made safe to judge by: nothing is fetched, and no pattern takes long."""

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from graphlib import CycleError, TopologicalSorter
from typing import Any

import jsonschema
import re2
from jsonschema.exceptions import SchemaError, ValidationError
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY as KNOWN
from referencing import Registry, Specification
from referencing.exceptions import CannotDetermineSpecification, Unresolvable
from referencing.jsonschema import specification_with

from services.errors import InvalidInput

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
IN_PLACE_BY_NAME = ("dependentSchemas", "dependencies")
"""Rules of these judge the same value as the schema that they stand in."""
MAX_QUOTED = 100

Judge = Any
JudgeType = Any
"""The library's validators and their classes, of whose methods its protocol names only some."""


def _is_found(pattern: str, text: str) -> bool:
    # An answer may hold half of a surrogate pair, which has no place in UTF-8.
    return _compiled(pattern).search(text.encode(errors="replace")) is not None


def _compiled(pattern: str) -> Any:
    """Compile for RE2, whose time grows with the text's length only. It keeps what it compiled."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern.encode(), options)


def _pattern(_: Judge, pattern: str, value: Any, __: Any) -> Iterator[ValidationError]:
    if isinstance(value, str) and not _is_found(pattern, value):
        yield ValidationError("does not match the pattern")


def _pattern_properties(
    validator: Judge, patterns: Mapping[str, Any], value: Any, _: Any
) -> Iterator[ValidationError]:
    if not isinstance(value, dict):
        return
    for pattern, schema in patterns.items():
        for name, inner in value.items():
            if _is_found(pattern, name):
                yield from validator.descend(inner, schema, path=name, schema_path=pattern)


def _additional_properties(
    kind: JudgeType, validator: Judge, rule: Any, value: Any, schema: Mapping[str, Any]
) -> Iterable[ValidationError]:
    """Let the library judge what no pattern names: it would match them by its own engine."""
    patterns = schema.get("patternProperties")
    if patterns and isinstance(value, dict):
        schema = {key: one for key, one in schema.items() if key != "patternProperties"}
        value = {
            name: inner
            for name, inner in value.items()
            if not any(_is_found(pattern, name) for pattern in patterns)
        }
    return kind.VALIDATORS["additionalProperties"](validator, rule, value, schema) or ()


def _bounded(kind: JudgeType) -> JudgeType:
    return extend(  # type: ignore[no-untyped-call]
        kind,
        {
            "pattern": _pattern,
            "patternProperties": _pattern_properties,
            "additionalProperties": partial(_additional_properties, kind),
        },
    )


LATEST: str = jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
DIALECTS: dict[str, JudgeType] = {
    kind.META_SCHEMA["$schema"].rstrip("#"): _bounded(kind)
    for kind in (
        jsonschema.Draft4Validator,
        jsonschema.Draft6Validator,
        jsonschema.Draft7Validator,
        jsonschema.Draft201909Validator,
        jsonschema.Draft202012Validator,
    )
}


class SchemaRules:
    """A schema all of whose parts were looked at."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Raise `InvalidInput` for what is no schema, or can't be judged by."""
        dialect = schema.get("$schema", LATEST)
        kind = DIALECTS.get(dialect.rstrip("#")) if isinstance(dialect, str) else None
        if kind is None:
            raise InvalidInput(
                f"The schema's $schema, {str(dialect)[:MAX_QUOTED]!r}, is not known; leave it out, "
                f"or name one of {', '.join(DIALECTS)}."
            )
        self.names: set[str] = set()
        """Of all properties that it describes."""
        self._kind = kind
        self._specification: Specification[Any] = specification_with(dialect)
        self._uses: set[str] = set()
        self._in_place: dict[int, set[int]] = {}
        # Said already: a part with $schema would be judged by the library's own engine.
        self._schema = {key: rule for key, rule in schema.items() if key != "$schema"}
        try:
            self._check_form(self._schema)
            self._look_through()
            TopologicalSorter(self._in_place).prepare()
        except CycleError:
            raise InvalidInput(
                "The schema refers to itself for the same value, without end; a reference back "
                "must stand under a property or an item."
            ) from None
        except RecursionError:
            raise InvalidInput("The schema is nested too deeply; make it flatter.") from None
        except (CannotDetermineSpecification, ValueError):
            # ValueError: of an address in $id that is none.
            raise InvalidInput("The schema has an $id or $schema that is no address.") from None

    def validator(self) -> Judge:
        """What judges by it."""
        return self._kind(self._schema, registry=Registry())

    def _look_through(self) -> None:
        """See every part that may judge something: sub-schemas, and what references lead to."""
        specification = self._specification
        root = specification.create_resource(self._schema)
        seen = {id(KNOWN.contents(address)) for address in KNOWN}
        to_see = [(KNOWN.resolver_with_root(root), root)]
        while to_see:
            resolver, resource = to_see.pop()
            part = resource.contents
            if not isinstance(part, dict) or id(part) in seen:
                continue
            seen.add(id(part))
            self._look_at(part)
            for key in REFERENCES:
                if key not in part:
                    continue
                try:
                    found = resolver.lookup(part[key])
                except (Unresolvable, ValueError, TypeError, AttributeError):
                    raise InvalidInput(
                        f"The schema's {key} to {str(part[key])[:MAX_QUOTED]!r} leads nowhere. "
                        "Nothing is fetched, so what it names must stand in the schema."
                    ) from None
                if id(found.contents) not in seen:
                    self._check_form(found.contents)
                self._in_place[id(part)].add(id(found.contents))
                to_see.append((found.resolver, specification.create_resource(found.contents)))
            to_see += [(resolver.in_subresource(sub), sub) for sub in resource.subresources()]

    def _check_form(self, part: Any) -> None:
        try:
            # Without formats: of those, only patterns matter, and RE2 knows others than Python.
            self._kind.check_schema(part, format_checker=None)
        except SchemaError as error:
            raise InvalidInput(f"This is no JSON schema: {error.message[:200]}.") from error

    def _look_at(self, part: dict[str, Any]) -> None:
        """Note what one part says, and raise `InvalidInput` for what can't be judged by."""
        if "$schema" in part:
            raise InvalidInput(
                "A part of the schema has a $schema of its own; name it at the top only."
            )
        self.names.update(part.get("properties", {}))
        self._in_place[id(part)] = {id(inner) for inner in _judging_the_same(part)}
        for pattern in [part.get("pattern"), *part.get("patternProperties", {})]:
            if pattern is not None:
                _check_pattern(pattern)
        self._uses |= part.keys() & {"patternProperties", "unevaluatedProperties"}
        if len(self._uses) > 1:
            raise InvalidInput(
                "The schema has both patternProperties and unevaluatedProperties, which can't be "
                "judged in bounded time; use additionalProperties instead of the latter."
            )


def _judging_the_same(part: Mapping[str, Any]) -> Iterator[Any]:
    for key in IN_PLACE:
        inner = part.get(key)
        yield from inner if isinstance(inner, list) else [inner]
    for key in IN_PLACE_BY_NAME:
        yield from part.get(key, {}).values()


def _check_pattern(pattern: str) -> None:
    try:
        _compiled(pattern)
    except (re2.error, UnicodeEncodeError) as error:
        raise InvalidInput(
            f"The schema's pattern {pattern[:MAX_QUOTED]!r} can't be used, as RE2 doesn't take it "
            f"({_words(error)}); make it simpler, without look-around and back-references."
        ) from None


def _words(error: Exception) -> str:
    said = error.args[0] if error.args else ""
    return said.decode(errors="replace") if isinstance(said, bytes) else str(said)
