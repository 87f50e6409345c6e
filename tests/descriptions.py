"""Whether a client that was made for one description of the API can use a server of another."""

from collections.abc import Iterator, Mapping
from typing import Any

Schema = Mapping[str, Any]
LEAST = ("minLength", "minItems", "minimum", "exclusiveMinimum", "minProperties")
MOST = ("maxLength", "maxItems", "maximum", "exclusiveMaximum")
SUCCESS = "2"


class Comparison:
    """Compares an `old` description with a `new` one, by what breaks clients of the old one."""

    def __init__(self, old: Schema, new: Schema) -> None:
        self._old = old
        self._new = new
        self._seen: set[tuple[str, str, bool]] = set()

    def faults(self) -> Iterator[str]:
        """What breaks clients, in words."""
        for path, item in self._old["paths"].items():
            for method, old in item.items():
                new = self._new["paths"].get(path, {}).get(method)
                name = f"{method.upper()} {path}"
                if new is None:
                    yield f"{name} is gone"
                else:
                    yield from (f"{name}: {fault}" for fault in self._operation(old, new))

    def _operation(self, old: Schema, new: Schema) -> Iterator[str]:
        if old["operationId"] != new["operationId"]:
            yield f"its name was {old['operationId']}"
        yield from self._parameters(old, new)
        yield from self._body(old.get("requestBody", {}), new.get("requestBody", {}))
        yield from self._answers(old["responses"], new["responses"])

    def _parameters(self, old: Schema, new: Schema) -> Iterator[str]:
        before, after = (
            {(one["in"], one["name"].lower()): one for one in each.get("parameters", ())}
            for each in (old, new)
        )
        for key in before.keys() - after.keys():
            yield f"parameter {key[1]} is gone"
        for key, one in after.items():
            if one.get("required") and not before.get(key, {}).get("required"):
                yield f"parameter {key[1]} is required"
            if key in before:
                yield from self._asked(before[key]["schema"], one["schema"], key[1])

    def _answers(self, old: Schema, new: Schema) -> Iterator[str]:
        for status, answer in old.items():
            if not status.startswith(SUCCESS):
                continue
            if status not in new:
                yield f"it answers no {status}"
                continue
            contents = new[status].get("content", {})
            for kind, content in answer.get("content", {}).items():
                if kind not in contents:
                    yield f"its {status} is no {kind}"
                else:
                    yield from self._told(content["schema"], contents[kind]["schema"], status)

    def _body(self, old: Schema, new: Schema) -> Iterator[str]:
        if new.get("required") and not old.get("required"):
            yield "its body is required"
        for kind, content in old.get("content", {}).items():
            if kind not in new.get("content", {}):
                yield f"it takes no {kind}"
            else:
                yield from self._asked(content["schema"], new["content"][kind]["schema"], "body")

    def _asked(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        """What was accepted and is not."""
        return self._narrowed(old, new, where, asked=True)

    def _told(self, old: Schema, new: Schema, where: str) -> Iterator[str]:
        """What is answered and was not."""
        return self._narrowed(new, old, where, asked=False)

    def _narrowed(self, wide: Schema, narrow: Schema, where: str, *, asked: bool) -> Iterator[str]:
        """Why something that fits `wide` may not fit `narrow`; when asked, wide is the old one."""
        key = (str(wide), str(narrow), asked)
        if key in self._seen:
            return
        self._seen.add(key)
        of_wide, of_narrow = (self._old, self._new) if asked else (self._new, self._old)
        forms = list(_forms(of_narrow, narrow))
        for one in _forms(of_wide, wide):
            found = [list(self._form(one, form, where, asked=asked)) for form in forms]
            if all(found):
                yield from min(found, key=len)

    def _form(self, wide: Schema, narrow: Schema, where: str, *, asked: bool) -> Iterator[str]:
        if narrow.get("type") not in {None, wide.get("type")}:
            yield f"{where} may be {wide.get('type', 'anything')}, for {narrow['type']}"
            return
        if "enum" in narrow and not set(wide.get("enum", ["?"])) <= set(narrow["enum"]):
            yield f"{where} may be other than {narrow['enum']}"
        yield from _bounds(wide, narrow, where)
        for name in set(narrow.get("required", ())) - set(wide.get("required", ())):
            yield f"{where}/{name} must be there" if asked else f"{where}/{name} may be missing"
        yield from self._inside(wide, narrow, where, asked=asked)

    def _inside(self, wide: Schema, narrow: Schema, where: str, *, asked: bool) -> Iterator[str]:
        inside, given = narrow.get("properties", {}), wide.get("properties", {})
        for name in given.keys() & inside.keys():
            yield from self._narrowed(given[name], inside[name], f"{where}/{name}", asked=asked)
        if asked and narrow.get("additionalProperties") is False:
            for name in given.keys() - inside.keys():
                yield f"{where}/{name} is gone"
        if "items" in narrow and "items" in wide:
            yield from self._narrowed(wide["items"], narrow["items"], f"{where}/*", asked=asked)


def _bounds(wide: Schema, narrow: Schema, where: str) -> Iterator[str]:
    for bound in MOST:
        if bound in narrow and wide.get(bound, float("inf")) > narrow[bound]:
            yield f"{where}: {bound} {narrow[bound]}"
    for bound in LEAST:
        if bound in narrow and wide.get(bound, float("-inf")) < narrow[bound]:
            yield f"{where}: {bound} {narrow[bound]}"


def _forms(document: Schema, schema: Schema) -> Iterator[Schema]:
    """The forms that a value may have, without references to others."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _forms(document, document["components"]["schemas"][name])
        return
    among = schema.get("anyOf") or schema.get("oneOf") if "properties" not in schema else None
    if among:
        for one in among:
            yield from _forms(document, one)
    else:
        yield schema
