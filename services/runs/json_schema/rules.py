"""Checks a JSON schema of a caller: nothing is fetched, and validating by it always ends."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import jsonschema
from referencing import Registry, Resource, Specification
from referencing.exceptions import Unresolvable
from referencing.jsonschema import specification_with

from promptstack.services.errors import InvalidInput
from promptstack.services.runs.json_schema.forms import form_of
from promptstack.services.runs.json_schema.keywords import Validator, ValidatorType, metered
from promptstack.services.runs.json_schema.meter import Meter
from promptstack.services.runs.json_schema.patterns import MAX_QUOTED, Patterns
from promptstack.services.validation.schema_bounds import SchemaBounds

UNSUPPORTED = (
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveAnchor",
    "$recursiveRef",
    "$schema",
    "dependencies",
    "dependentSchemas",
    "patternProperties",
    "unevaluatedItems",
    "unevaluatedProperties",
)
"""Keywords that a part of a schema must not have. Structured outputs of providers refuse them, too;
each would need code of its own here to be validated in bounded time."""
SAME_VALUE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
"""Their schemas apply to the same value as the schema around them."""
DEFINITIONS = ("$defs", "definitions")
"""Their schemas apply only where a reference leads to them."""

LATEST: str = jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
DIALECTS: dict[str, ValidatorType] = {
    kind.META_SCHEMA["$schema"].rstrip("#"): kind
    for kind in (
        jsonschema.Draft4Validator,
        jsonschema.Draft6Validator,
        jsonschema.Draft7Validator,
        jsonschema.Draft201909Validator,
        jsonschema.Draft202012Validator,
    )
}
FORMS: dict[ValidatorType, Validator] = {kind: form_of(kind) for kind in DIALECTS.values()}


class SchemaRules:
    """A schema whose parts were all checked."""

    def __init__(self, schema: Mapping[str, Any], bounds: SchemaBounds) -> None:
        """Raise `InvalidInput` if it is no schema, or answers can't be validated by it."""
        bounds.check(schema)
        dialect = schema.get("$schema", LATEST)
        kind = DIALECTS.get(dialect.rstrip("#")) if isinstance(dialect, str) else None
        if kind is None:
            raise InvalidInput(
                f"The schema's $schema, {str(dialect)[:MAX_QUOTED]!r}, is not known; leave it out, "
                f"or name one of {', '.join(DIALECTS)}."
            )
        self.names: set[str] = set()
        """Of all properties that it describes."""
        self.meter = Meter(bounds.judging_steps, bounds.judging_seconds)
        self._kind = kind
        self._bounds = bounds
        self._specification: Specification[Any] = specification_with(dialect)
        self._id = "id" if kind is jsonschema.Draft4Validator else "$id"
        self._patterns = Patterns(self.meter)
        self._keywords: dict[int, int] = {}
        self._same_value: dict[int, list[int]] = {}
        self._inner: dict[int, list[int]] = {}
        self._check_form(schema)
        # At the top, these two name the schema and its dialect, and are no rules.
        self._schema = {key: one for key, one in schema.items() if key not in {"$schema", self._id}}
        self._look_through()
        self._check_ends()
        self._check_expanded()

    def validator(self) -> Validator:
        """Return a validator that counts its steps on `meter`."""
        return metered(self._kind, self.meter, self._patterns)(self._schema, registry=Registry())

    def _look_through(self) -> None:
        """Check every part: sub-schemas, and what references lead to."""
        root = self._resource(self._schema)
        resolver = Registry().resolver_with_root(root)
        to_see = [root]
        while to_see:
            resource = to_see.pop()
            part = resource.contents
            if id(part) in self._keywords:
                continue
            self._check_form(part)
            self._keywords[id(part)] = max(1, len(part)) if isinstance(part, dict) else 1
            if not isinstance(part, dict):
                continue
            self._check_keywords(part)
            self.names.update(part.get("properties", {}))
            led_to = [self._follow(resolver, part["$ref"])] if "$ref" in part else []
            applied = {key: one for key, one in part.items() if key not in DEFINITIONS}
            reference = [id(one.contents) for one in led_to]
            self._same_value[id(part)] = [*reference, *map(id, _of_the_same_value(part))]
            self._inner[id(part)] = [
                *reference,
                *(id(one.contents) for one in self._resource(applied).subresources()),
            ]
            to_see += [*led_to, *resource.subresources()]

    def _resource(self, part: Any) -> Resource[Any]:
        return self._specification.create_resource(part)

    def _follow(self, resolver: Any, reference: Any) -> Resource[Any]:
        try:
            return self._resource(resolver.lookup(reference).contents)
        except (Unresolvable, ValueError, TypeError, AttributeError):
            raise InvalidInput(
                f"The schema's $ref to {str(reference)[:MAX_QUOTED]!r} leads nowhere. Nothing is "
                "fetched, so what it names must stand in the schema, as in #/$defs/name."
            ) from None

    def _check_form(self, part: Any) -> None:
        error = next(FORMS[self._kind].iter_errors(part), None)
        if error is not None:
            raise InvalidInput(f"This is no JSON schema: {error.message[:200]}.")

    def _check_keywords(self, part: Mapping[str, Any]) -> None:
        """Raise `InvalidInput` for a keyword or a pattern that isn't supported."""
        refused = next((name for name in (*UNSUPPORTED, self._id) if name in part), None)
        if refused is not None:
            raise InvalidInput(
                f"A part of the schema has the keyword {refused}, by which answers can't be judged "
                "here; leave it out. Name $schema at the top only, refer to parts by #/$defs/name, "
                "and describe objects by properties and additionalProperties."
            )
        if "pattern" in part:
            self._patterns.compile(part["pattern"])

    def _check_ends(self) -> None:
        try:
            TopologicalSorter(self._same_value).prepare()
        except CycleError:
            raise InvalidInput(
                "The schema refers to itself for the same value, without end; a reference back "
                "must stand under a property or an item."
            ) from None

    def _check_expanded(self) -> None:
        """Bound keywords and levels, counting a part each time that something leads to it.

        A part within itself, under a property or an item, counts as one keyword there. How often
        it applies depends on the answer, and is counted then.
        """
        bounds, known = self._bounds, dict[int, tuple[int, int]]()
        begun: set[int] = set()
        to_do = [id(self._schema)]
        while to_do:
            part = to_do[-1]
            inner = self._inner.get(part, [])
            if part not in begun:
                begun.add(part)
                to_do += [one for one in inner if one not in begun]
                continue
            to_do.pop()
            counted = [known.get(one, (1, 0)) for one in inner]
            keywords = self._keywords[part] + sum(keywords for keywords, _ in counted)
            depth = 1 + max((depth for _, depth in counted), default=0)
            known[part] = keywords, depth
            if depth > bounds.depth:
                raise bounds.too_deep("The schema")
            if keywords > bounds.expanded:
                words = "keywords, those of a part counted at each reference to it"
                raise bounds.too_large("The schema", "expanded", words)


def _of_the_same_value(part: Mapping[str, Any]) -> Iterator[Any]:
    for key in SAME_VALUE:
        inner = part.get(key)
        yield from inner if isinstance(inner, list) else [inner]
