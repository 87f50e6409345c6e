"""JSON schemas of callers, made safe to judge by: nothing is fetched, and no work is endless."""

from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

import jsonschema
from jsonschema_specifications import REGISTRY
from referencing import Registry, Specification
from referencing.exceptions import CannotDetermineSpecification, Unresolvable
from referencing.jsonschema import specification_with

from promptstack.services.errors import InvalidInput
from promptstack.services.runs.json_schema.forms import form_of
from promptstack.services.runs.json_schema.keywords import metered
from promptstack.services.runs.json_schema.meter import Judge, JudgeType, Meter
from promptstack.services.runs.json_schema.patterns import MAX_QUOTED, Patterns
from promptstack.services.validation.schema_bounds import SchemaBounds

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
IN_PLACE = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
IN_PLACE_BY_NAME = ("dependentSchemas", "dependencies")
"""Rules of these judge the same value as the schema that they stand in."""
DEFINITIONS = ("$defs", "definitions")
"""What stands there judges nothing before a reference leads to it."""

LATEST: str = jsonschema.Draft202012Validator.META_SCHEMA["$schema"]
DIALECTS: dict[str, JudgeType] = {
    kind.META_SCHEMA["$schema"].rstrip("#"): kind
    for kind in (
        jsonschema.Draft4Validator,
        jsonschema.Draft6Validator,
        jsonschema.Draft7Validator,
        jsonschema.Draft201909Validator,
        jsonschema.Draft202012Validator,
    )
}
FORMS: dict[JudgeType, Judge] = {kind: form_of(kind) for kind in DIALECTS.values()}


def _known() -> Registry[Any]:
    """The metaschemas. With a $schema, they would be judged by the library's own keywords."""
    registry: Registry[Any] = Registry()
    for address in REGISTRY:
        document = dict(REGISTRY.contents(address))
        specification: Specification[Any] = specification_with(document.pop("$schema"))
        registry = registry.with_resource(address, specification.create_resource(document))
    return registry.crawl()


KNOWN = _known()


class SchemaRules:
    """A schema all of whose parts were looked at."""

    def __init__(self, schema: Mapping[str, Any], bounds: SchemaBounds) -> None:
        """Raise `InvalidInput` for what is no schema, or can't be judged by."""
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
        self._patterns = Patterns(self.meter)
        self._uses: set[str] = set()
        self._checked: set[int] = set()
        self._in_place: dict[int, set[int]] = {}
        self._inner: dict[int, list[int]] = {}
        self._own: dict[int, int] = {}
        # Said already: a part with $schema would be judged by the library's own engine.
        self._schema = {key: rule for key, rule in schema.items() if key != "$schema"}
        root = self._specification.create_resource(self._schema)
        try:
            self._check_form(root)
            address = root.id() or ""
            # Crawled once; the library would do so anew for each reference to an anchor.
            self._resolver = KNOWN.with_resource(address, root).crawl().resolver(address)
            self._look_through(root)
            TopologicalSorter(self._in_place).prepare()
        except CycleError:
            raise InvalidInput(
                "The schema refers to itself for the same value, without end; a reference back "
                "must stand under a property or an item."
            ) from None
        except (CannotDetermineSpecification, ValueError):
            # ValueError: of an address in $id that is none.
            raise InvalidInput("The schema has an $id or $schema that is no address.") from None
        self._check_expanded()

    def validator(self) -> Judge:
        """What judges by it, counted by `meter`."""
        self.meter.know(self._schema)
        judge = metered(self._kind, self.meter, self._patterns)
        return judge(self._schema, registry=Registry(), _resolver=self._resolver)

    def _look_through(self, root: Any) -> None:
        """See every part that may judge something: sub-schemas, and what references lead to."""
        to_see = [(self._resolver, root)]
        while to_see:
            resolver, resource = to_see.pop()
            part = resource.contents
            if id(part) in self._own:
                continue
            self._own[id(part)] = max(1, len(part)) if isinstance(part, dict) else 1
            if not isinstance(part, dict):
                continue
            self._look_at(part)
            led_to = list(self._follow(resolver, part))
            self._in_place[id(part)] |= {id(found.contents) for _, found in led_to}
            inner = [(resolver.in_subresource(sub), sub) for sub in resource.subresources()]
            defined = {id(one) for one in _by_name(part, DEFINITIONS)}
            self._inner[id(part)] = [
                *(id(found.contents) for _, found in led_to),
                *(id(sub.contents) for _, sub in inner if id(sub.contents) not in defined),
            ]
            to_see += [*led_to, *inner]

    def _follow(self, resolver: Any, part: Mapping[str, Any]) -> Iterator[tuple[Any, Any]]:
        """What a part's references lead to, each with what resolves the next ones."""
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
            resource = self._specification.create_resource(found.contents)
            self._check_form(resource)
            yield found.resolver, resource

    def _check_form(self, resource: Any) -> None:
        """Raise `InvalidInput` unless a part, and all that stands in it, has a schema's form."""
        form, to_check = FORMS[self._kind], [resource]
        while to_check:
            one = to_check.pop()
            if id(one.contents) in self._checked:
                continue
            self._checked.add(id(one.contents))
            if isinstance(one.contents, dict) and "$schema" in one.contents:
                raise InvalidInput(
                    "A part of the schema has a $schema of its own; name it at the top only."
                )
            error = next(form.iter_errors(one.contents), None)
            if error is not None:
                raise InvalidInput(f"This is no JSON schema: {error.message[:200]}.")
            to_check += one.subresources()

    def _look_at(self, part: dict[str, Any]) -> None:
        """Note what one part says, and raise `InvalidInput` for what can't be judged by."""
        self.names.update(part.get("properties", {}))
        self._in_place[id(part)] = {id(inner) for inner in _judging_the_same(part)}
        for pattern in [part.get("pattern"), *part.get("patternProperties", {})]:
            if pattern is not None:
                self._patterns.compile(pattern)
        self._uses |= part.keys() & {"patternProperties", "unevaluatedProperties"}
        if len(self._uses) > 1:
            raise InvalidInput(
                "The schema has both patternProperties and unevaluatedProperties, which can't be "
                "judged in bounded time; use additionalProperties instead of the latter."
            )

    def _check_expanded(self) -> None:
        """Count keywords and levels, those of a part each time that something leads to it.

        A part within itself, under a property or an item, counts as one keyword there: how often
        it is come to is for the answer to say.
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
            steps = self._own[part] + sum(steps for steps, _ in counted)
            depth = 1 + max((depth for _, depth in counted), default=0)
            known[part] = steps, depth
            if depth > bounds.depth:
                raise bounds.too_deep("The schema")
            if steps > bounds.expanded:
                words = "keywords, those of a part counted at each reference to it"
                raise bounds.too_large("The schema", "expanded", words)


def _judging_the_same(part: Mapping[str, Any]) -> Iterator[Any]:
    for key in IN_PLACE:
        inner = part.get(key)
        yield from inner if isinstance(inner, list) else [inner]
    yield from _by_name(part, IN_PLACE_BY_NAME)


def _by_name(part: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Any]:
    for key in keys:
        inner = part.get(key)
        # Some kinds don't know some of these keys, and say nothing about what stands there.
        yield from inner.values() if isinstance(inner, dict) else ()
