"""The description of the API is fit for generated clients."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.api.http.description import TAGS, describe
from promptstack.api.http.examples import EXAMPLES
from promptstack.repositories.access_models import Role
from promptstack.tasks.worker_services import WorkerServices
from tests.http import sign_in

METHODS = ("get", "post", "put", "patch", "delete")
WORDS = re.compile(r"[a-z]+(_[a-z]+)*")


@pytest.fixture
def document(stack: WorkerServices) -> dict[str, Any]:
    return describe(stack.settings)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                yield method, path, item[method]


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_has_a_short_name_of_its_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    for name in names:
        assert WORDS.fullmatch(name), name
        assert len(name) <= 40


def test_every_operation_has_one_tag_and_every_tag_says_what_it_is(
    document: dict[str, Any],
) -> None:
    tags = [tag for _, _, operation in operations(document) for tag in operation["tags"]]
    assert set(tags) == set(TAGS)
    assert len(tags) == len(list(operations(document)))


def test_every_answer_says_what_it_holds(document: dict[str, Any]) -> None:
    """A 202 without a body, or bytes without a type, is of no use to a generated client."""
    for method, path, operation in operations(document):
        for status, answer in operation["responses"].items():
            if status not in {"204", "304"}:
                for content in answer["content"].values():
                    assert content.get("schema"), (method, path, status)


def test_every_body_has_an_example(document: dict[str, Any]) -> None:
    with_body = {
        operation["operationId"]
        for _, _, operation in operations(document)
        if "requestBody" in operation
    }
    assert with_body == set(EXAMPLES)


def test_every_example_is_accepted(
    stack: WorkerServices, document: dict[str, Any], client: Any, subtests: pytest.Subtests
) -> None:
    headers = sign_in(stack, "root@example.org", Role.SUPER_ADMIN)
    missing = "01900000-0000-7000-8000-000000000000"
    for method, path, operation in operations(document):
        name = operation["operationId"]
        if name not in EXAMPLES:
            continue
        with subtests.test(name):
            url = re.sub(r"\{[^}]+\}", missing if "name" not in path else "some_flag", path)
            response = client.request(method, url, json=EXAMPLES[name], headers=headers)
            assert response.status_code not in {400, 415, 422}, response.text


def test_the_command_prints_what_the_server_serves(client: Any) -> None:
    result = CliRunner().invoke(build(), ["openapi"])
    assert json.loads(result.output) == client.get("/openapi.json").json()
