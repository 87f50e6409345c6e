"""Errors below `/openai/v1`, as OpenAI's own client reads them."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from openai import OpenAI

from promptstack.api.http.openai.errors import openai_error
from promptstack.api.http.openai.ids import read_wire_id, wire_id
from promptstack.repositories.models import new_id
from promptstack.services.errors import NotFound
from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server, serve

FIELDS = {"message", "type", "param", "code"}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as opened:
        yield opened


def error_of(response: Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"].startswith("req_")
    body: dict[str, dict[str, Any]] = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == FIELDS
    return body["error"]


def test_what_the_framework_refuses_has_the_form_too(client: TestClient) -> None:
    error = error_of(client.get("/openai/v1/nothing"), 404)
    assert (error["type"], error["code"]) == ("not_found_error", "not_found")


def test_what_middleware_refuses_has_the_form_too(client: TestClient) -> None:
    both = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    error = error_of(client.post("/openai/v1/files", headers=both, content=b"{}"), 400)
    assert error["type"] == "invalid_request_error"


def test_other_routes_keep_their_problems(client: TestClient) -> None:
    response = client.get("/api/v1/nothing")
    assert response.headers["content-type"] == "application/problem+json"
    assert "x-request-id" not in response.headers


def test_the_sdk_reads_our_error(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Test")
    with (
        live_server(stack) as (_, url),
        OpenAI(base_url=f"{url}/openai/v1", api_key=key) as sdk,
        pytest.raises(openai.NotFoundError) as caught,
    ):
        sdk.get("/nothing", cast_to=object)
    assert caught.value.code == "not_found"
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id is not None


@pytest.mark.parametrize(
    ("status", "code", "kind", "wire_code"),
    [
        (401, "NOT_AUTHENTICATED", "authentication_error", "invalid_api_key"),
        (401, "TOKEN_MALFORMED", "authentication_error", "invalid_api_key"),
        (402, "KEY_BUDGET_REACHED", "insufficient_quota", "insufficient_quota"),
        (403, "NOT_PERMITTED", "permission_error", "not_permitted"),
        (409, "WRONG_STATE", "invalid_request_error", "wrong_state"),
        (422, "UNKNOWN_MODEL", "invalid_request_error", "model_not_found"),
        (429, "TOO_MANY_REQUESTS", "rate_limit_error", "rate_limit_exceeded"),
        (503, "LEDGER_AWAY", "server_error", "ledger_away"),
    ],
)
def test_each_status_has_a_type_and_a_code(
    status: int, code: str, kind: str, wire_code: str
) -> None:
    error = openai_error({"status": status, "code": code, "detail": "So."})["error"]
    assert error == {"message": "So.", "type": kind, "param": None, "code": wire_code}


def test_the_field_at_fault_is_named_as_openai_names_it() -> None:
    fault = {"location": "body.messages.0.role", "pointer": "/messages/0/role", "message": "Bad"}
    problem = {"status": 422, "code": "INVALID_INPUT", "detail": "?", "errors": [fault]}
    error = openai_error(problem)["error"]
    assert error["param"] == "messages[0].role"
    assert error["message"] == "messages[0].role: Bad."


def test_ids_are_read_as_they_are_written() -> None:
    one = new_id()
    assert read_wire_id("file-", wire_id("file-", one), "file") == one
    for wrong in (
        "",
        "file-",
        one.hex,
        f"batch_{one.hex}",
        wire_id("file-", one).upper(),
        "file-x",
    ):
        with pytest.raises(NotFound):
            read_wire_id("file-", wrong, "file")


def test_a_refused_request_says_what_is_left_of_the_keys_limit(
    stack: WorkerServices, client: TestClient
) -> None:
    key = stack.keys.create("ada@example.org", "x", requests_a_minute=1)
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get("/openai/v1/models", headers=headers).status_code == 200
    refused = client.get("/openai/v1/models", headers=headers)
    assert error_of(refused, 429)["code"] == "rate_limit_exceeded"
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-ratelimit-limit-requests"] == "1"
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 0 < float(refused.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    refused = client.get("/anthropic/v1/messages/batches", headers=headers)
    assert refused.status_code == 429
    assert refused.headers["anthropic-ratelimit-requests-remaining"] == "0"


def test_a_filter_that_nothing_can_have_is_a_400(stack: WorkerServices, client: TestClient) -> None:
    headers = {"Authorization": f"Bearer {stack.keys.create('ada@example.org', 'x')}"}
    error = error_of(client.get("/openai/v1/files?purpose=%00", headers=headers), 400)
    assert "purpose has a NUL character" in error["message"]
