"""A small instance of a JSON schema, for structured answers and the arguments of tools."""

from collections.abc import Mapping
from typing import Any


def instance_of(schema: Mapping[str, Any]) -> Any:
    """Return a value of `schema`: every property, one item in each list, the first of all choices.

    References into the schema itself are followed; what would go round in them is left out.
    """
    return _Instances(schema).of(schema, frozenset())


class _Instances:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def of(self, schema: Mapping[str, Any], inside: frozenset[str]) -> Any:
        """Return an instance; `inside` are the references it is part of."""
        reference = schema.get("$ref")
        if reference is not None:
            return self.of(self._at(reference), inside | {reference})
        choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if choices:
            good = [choice for choice in choices if choice.get("$ref") not in inside]
            return self.of(good[0], inside) if good else None
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        return values[0] if values else self._of_type(schema, inside)

    def _of_type(self, schema: Mapping[str, Any], inside: frozenset[str]) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0]
        # Google writes types in capitals.
        match str(kind).lower():
            case "object":
                properties: Mapping[str, Mapping[str, Any]] = schema.get("properties", {})
                return {
                    name: self.of(part, inside)
                    for name, part in properties.items()
                    if part.get("$ref") not in inside
                }
            case "array":
                items = schema.get("items", {})
                return [] if items.get("$ref") in inside else [self.of(items, inside)]
            case "integer" | "number":
                least, most = schema.get("minimum", 1), schema.get("maximum", 1)
                return least if least > 1 else min(1, most)
            case other:
                return {"boolean": True, "null": None}.get(other, "simulated")

    def _at(self, reference: str) -> Mapping[str, Any]:
        found: Any = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            found = found[name.replace("~1", "/").replace("~0", "~")]
        return dict(found)
