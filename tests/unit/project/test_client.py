"""The client calls the routes as the API describes them, and lacks nothing of them."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

import promptstack_client
from promptstack.api.http.description import describe
from promptstack.config.settings import load_settings
from promptstack_client import Client, resources
from promptstack_client.calls import Route
from promptstack_client.methods import Listing, Resource
from promptstack_client.models.base import Model
from promptstack_client.options import EmbeddingEntry, GenerationEntry

PREFIX = "/api/v1"
BY_ITSELF = {"after", "wait", "idempotency_key", "dry_run"}
"""What the client sends without being asked: for pages, waiting, repetition, `check_generation`."""


@cache
def document() -> dict[str, Any]:
    return describe(load_settings(_env_file=None))


def modules(package: ModuleType) -> Iterator[ModuleType]:
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(found.name)


def methods() -> Iterator[tuple[str, Any]]:
    """Each method of the client that calls a route."""
    for found in modules(resources):
        for name, kind in vars(found).items():
            if inspect.isclass(kind) and issubclass(kind, Resource) and kind is not Resource:
                for attribute, method in vars(kind).items():
                    if isinstance(getattr(method, "route", None), Route):
                        yield f"{name}.{attribute}", method


def streams() -> Iterator[tuple[str, Route[Any]]]:
    """Each route whose answer comes piece by piece; methods name it."""
    for module in modules(promptstack_client):
        for name, value in vars(module).items():
            if isinstance(value, Route):
                yield name, value


ALL = dict(methods())


def described(route: Route[Any]) -> dict[str, Any]:
    operation: dict[str, Any] = document()["paths"][PREFIX + route.path][route.method.lower()]
    return operation


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without references, and without the null that it may be instead."""
    if "$ref" in schema:
        return resolved(document()["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        [only] = [each for each in schema["anyOf"] if each.get("type") != "null"]
        return resolved(only)
    return schema


def body_of(operation: dict[str, Any]) -> set[str]:
    content = operation.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return set()
    return set(resolved(content["application/json"]["schema"])["properties"])


def named(operation: dict[str, Any], place: str) -> set[str]:
    return {each["name"] for each in operation.get("parameters", []) if each["in"] == place}


def keywords(method: Any) -> set[str]:
    """What a caller may say."""
    found = set()
    for parameter in list(inspect.signature(method.ask).parameters.values())[1:]:
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            [options] = get_args(get_type_hints(method.ask)[parameter.name])
            assert is_typeddict(options)
            found |= set(get_type_hints(options))
        else:
            found.add(parameter.name)
    return found


def answers_of(operation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            schema = answer["content"]["application/json"]["schema"]
            yield from map(resolved, schema.get("anyOf", [schema]))


def test_the_client_has_methods() -> None:
    assert len(ALL) >= 15
    assert {"generate", "embed"} <= set(dir(Client))


@pytest.mark.parametrize(("name", "route"), dict(streams()).items())
def test_what_comes_piece_by_piece_has_a_route(name: str, route: Route[Any]) -> None:
    assert "200" in described(route)["responses"], name


@pytest.mark.parametrize("name", list(ALL))
def test_a_method_asks_what_its_route_takes(name: str) -> None:
    method = ALL[name]
    operation = described(method.route)
    path = {part.removesuffix("_id") for part in named(operation, "path")}
    takes = path | named(operation, "query") | body_of(operation)
    asks = keywords(method)
    assert asks - takes <= BY_ITSELF
    assert takes - asks <= BY_ITSELF, "the API takes more than the client can say"


@pytest.mark.parametrize(
    ("entry", "schema"),
    [(GenerationEntry, "GenerationOfMany"), (EmbeddingEntry, "EmbeddingOfMany")],
)
def test_a_job_of_a_list_has_the_fields_of_its_schema(entry: type, schema: str) -> None:
    assert set(get_type_hints(entry)) == set(
        document()["components"]["schemas"][schema]["properties"]
    )


@pytest.mark.parametrize("name", list(ALL))
def test_what_makes_something_has_an_idempotency_key(name: str) -> None:
    route = ALL[name].route
    assert route.keyed == ("Idempotency-Key" in named(described(route), "header"))


@pytest.mark.parametrize("name", list(ALL))
def test_an_answer_has_the_fields_of_its_model(name: str) -> None:
    method = ALL[name]
    operation = described(method.route)
    if method.route.answer is type(None):
        assert "content" not in operation["responses"]["204"]
        return
    [*schemas] = answers_of(operation)
    kind = method.route.answer
    inside = method.route.inside
    if isinstance(method, Listing):
        kind, inside = list[method.item], method.inside  # type: ignore[name-defined]
    if inside is not None:
        schemas = [resolved(schema["properties"][inside]) for schema in schemas]
    if get_origin(kind) is list:
        [kind], schemas = get_args(kind), [resolved(schema["items"]) for schema in schemas]
    assert issubclass(kind, Model)
    fields = [set(schema["properties"]) for schema in schemas if "properties" in schema]
    assert not fields or set(kind.model_fields) in fields, fields
