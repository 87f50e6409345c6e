"""Whether a JSON schema has the form of one. Each part is looked at alone, and once."""

from typing import Any
from urllib.parse import urljoin

from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY as KNOWN
from referencing import Registry

from promptstack.services.runs.json_schema.keywords import unique_items

RECURSIONS = ({"$ref": "#"}, {"$dynamicRef": "#meta"}, {"$recursiveRef": "#"})
"""How metaschemas say that a schema stands there."""


def form_of(kind: Any) -> Any:
    """Return a validator of one part of a schema of this kind, without the parts within it.

    The library's `check_schema` takes half a millisecond a part, and would look at a part again
    for each reference to it.
    """
    whole: dict[str, Any] = kind.META_SCHEMA
    vocabularies = [urljoin(whole["$id"], one["$ref"]) for one in whole.get("allOf", ())]
    documents = [whole, *map(KNOWN.contents, vocabularies)]
    # Draft 4 has no schemas that are true or false.
    types = whole["type"]
    form = {
        group: {
            name: _flat(rule, types)
            for document in documents
            for name, rule in document.get(group, {}).items()
        }
        for group in ("properties", "definitions", "$defs", "dependencies")
    }
    form_class = extend(kind, {"uniqueItems": unique_items})  # type: ignore[no-untyped-call]
    return form_class({"type": types, **form}, registry=Registry())


def _flat(rule: Any, types: Any) -> Any:
    if rule in RECURSIONS:
        return {"type": types}
    match rule:
        case {"$ref": str(reference)}:
            return {"$ref": "#" + reference.partition("#")[2]}
        case dict():
            return {name: _flat(inner, types) for name, inner in rule.items()}
        case list():
            return [_flat(inner, types) for inner in rule]
        case _:
            return rule
