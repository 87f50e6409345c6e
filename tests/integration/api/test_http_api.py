"""The HTTP API over the real ledger and Redis."""

import asyncio
import hashlib
import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from starlette.types import Message as ASGIMessage

from promptstack.api.http.app import create_app
from promptstack.api.http.embeddings import EmbeddingBody
from promptstack.api.http.generations import GenerationBody
from promptstack.config.settings import Settings
from promptstack.embedded.servers import ServerUrls
from promptstack.repositories.access_models import Scope
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.models import JobState
from promptstack.services.llm.requests import Message
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve

GENERATIONS = "/api/v1/generations"
EMBEDDINGS = "/api/v1/embeddings"
JOBS = "/api/v1/jobs"
RUNS = "/api/v1/runs"
NOBODY = "127.0.0.1:1"
JSON = {"Content-Type": "application/json"}


@contextmanager
def opened(settings: Settings, **changes: object) -> Iterator[WorkerServices]:
    with WorkerServices.open(settings.model_copy(update=changes)) as stack:
        yield stack


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


@pytest.fixture
def stranger(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack, "stranger@example.org") as client:
        yield client


# Enqueueing


def test_a_generation_is_accepted_and_found_where_location_says(
    client: TestClient, stack: WorkerServices
) -> None:
    response = client.post(
        GENERATIONS,
        json={
            "messages": [{"role": "user", "content": "Hello 🌍"}],
            "system": "Be brief.",
            "temperature": 0.5,
            "max_tokens": 20,
            "stop": ["END"],
            "seed": 7,
            "options": {"fail_times": 1},
            "max_retries": 9,
            "expires_in": 60,
        },
    )
    assert response.status_code == 202
    job = response.json()
    assert (job["kind"], job["state"], job["max_retries"]) == ("generation", "queued", 9)
    assert response.headers["location"] == f"{JOBS}/{job['id']}"
    assert client.get(response.headers["location"]).json() | {"waits": None} == job
    with stack.ledger.transaction() as unit:
        stored = unit.jobs.get(UUID(job["id"]))
        assert stored is not None
        assert stored.request["messages"][0]["content"] == "Hello 🌍"
        assert stored.request["options"] == {"fail_times": 1}
        assert stored.user_id is not None
        assert stored.published_at is not None


def test_an_embedding_is_accepted_under_the_hash_of_its_text(
    client: TestClient, stack: WorkerServices
) -> None:
    response = client.post(EMBEDDINGS, json={"text": "Some document."})
    assert response.status_code == 202
    assert response.json()["kind"] == "embedding"
    named = client.post(EMBEDDINGS, json={"text": "Some document.", "source": "a.txt"})
    assert named.status_code == 202
    far = client.post(EMBEDDINGS, json={"text": "Some document.", "source": "a" * 2_000})
    assert far.status_code == 202
    with stack.ledger.transaction() as unit:
        sources = {document.source for document in unit.documents.get_many()}
    digest = hashlib.sha256(b"Some document.").hexdigest()
    assert sources == {f"sha256:{digest}", "a.txt", "a" * 2_000}


def test_the_same_idempotency_key_returns_the_same_job(
    client: TestClient, stranger: TestClient
) -> None:
    key = {"Idempotency-Key": "order-1"}
    first = client.post(GENERATIONS, json={"prompt": "x"}, headers=key)
    again = client.post(GENERATIONS, json={"prompt": "x"}, headers=key)
    assert again.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    other = client.post(GENERATIONS, json={"prompt": "y"}, headers=key)
    problem(other, 409, "IDEMPOTENCY_CONFLICT")
    theirs = stranger.post(GENERATIONS, json={"prompt": "y"}, headers=key)
    assert theirs.json()["id"] != first.json()["id"]


def test_jobs_are_accepted_while_the_broker_is_down(settings: Settings) -> None:
    with opened(settings, redis_url=f"redis://{NOBODY}/0") as stack, serve(stack) as client:
        started = time.monotonic()
        response = client.post(GENERATIONS, json={"prompt": "x"})
        assert response.status_code == 202
        assert time.monotonic() - started < 5
        health = client.get("/healthz")
        assert health.status_code == 200
        assert health.json() == {"version": "0.1.0", "database": True, "redis": False, "workers": 0}


def test_many_callers_at_once_are_all_served(settings: Settings) -> None:
    with (
        opened(settings, database_pool_size=2, database_max_overflow=2) as stack,
        serve(stack) as client,
    ):
        key = client.headers["authorization"]

        async def enqueue_many() -> list[int]:
            requests = (_post(client.app, b'{"prompt": "x"}', key) for _ in range(40))
            return list(await asyncio.gather(*requests))

        assert client.portal is not None
        assert client.portal.call(enqueue_many) == [202] * 40


# Bad requests


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param(b"", 422, "INVALID_INPUT", id="empty"),
        pytest.param(b"[]", 422, "INVALID_INPUT", id="array"),
        pytest.param(b'"text"', 422, "INVALID_INPUT", id="string"),
        pytest.param(b"null", 422, "INVALID_INPUT", id="null"),
        pytest.param(b"{}", 422, "INVALID_INPUT", id="no input"),
        pytest.param(b'{"prompt": ', 400, "BAD_REQUEST", id="broken"),
        pytest.param(b'{"prompt": "\xff\xfe"}', 400, "BAD_REQUEST", id="not UTF-8"),
        pytest.param(b"[" * 100_000, 422, "INVALID_INPUT", id="deep and broken"),
        pytest.param(b"[" * 900 + b"]" * 900, 422, "INVALID_INPUT", id="deep array"),
        pytest.param(
            b'{"prompt": "x", "options": {"a": ' + b"[" * 600 + b"]" * 600 + b"}}",
            422,
            "INVALID_INPUT",
            id="deep options",
        ),
        pytest.param(
            b'{"prompt": "x", "seed": ' + b"9" * 5_000 + b"}",
            422,
            "INVALID_INPUT",
            id="huge number",
        ),
        pytest.param(b'{"prompt": "\\ud800"}', 422, "INVALID_INPUT", id="surrogate in prompt"),
        pytest.param(b'{"prompt": "\\u0000"}', 422, "INVALID_INPUT", id="NUL in prompt"),
        pytest.param(
            b'{"messages": [{"role": "user", "content": "a\\u0000"}]}',
            422,
            "INVALID_INPUT",
            id="NUL in message",
        ),
        pytest.param(
            b'{"prompt": "x", "model": "\\u0000"}', 422, "INVALID_INPUT", id="NUL in model"
        ),
        pytest.param(
            b'{"prompt": "x", "provider": "\\ud800"}', 422, "INVALID_INPUT", id="surrogate provider"
        ),
        pytest.param(
            b'{"prompt": "x", "options": {"\\ud800": 1}}', 422, "INVALID_INPUT", id="option's name"
        ),
        pytest.param(
            b'{"prompt": "x", "options": {"fail_with": "\\u0000"}}',
            422,
            "INVALID_INPUT",
            id="NUL in option",
        ),
        pytest.param(b'{"prompt": "x", "\\ud800": 1}', 422, "INVALID_INPUT", id="surrogate name"),
        pytest.param(b'{"prompt": "x", "temperature": NaN}', 422, "INVALID_INPUT", id="NaN"),
        pytest.param(
            b'{"prompt": "x", "options": {"delay_seconds": NaN}}',
            422,
            "INVALID_INPUT",
            id="NaN in option",
        ),
        pytest.param(
            b'{"prompt": "x", "expires_in": Infinity}', 422, "INVALID_INPUT", id="infinity"
        ),
        pytest.param(b'{"prompt": "x", "max_retries": -1}', 422, "INVALID_INPUT", id="retries"),
        pytest.param(b'{"prompt": " "}', 422, "INVALID_INPUT", id="blank"),
        pytest.param(
            b'{"prompt": "x", "messages": [{"role": "user", "content": "y"}]}',
            422,
            "INVALID_INPUT",
            id="both inputs",
        ),
        pytest.param(b'{"prompt": "x", "provider": "?"}', 422, "UNKNOWN_PROVIDER", id="provider"),
        pytest.param(b'{"prompt": "x", "model": "?"}', 422, "UNKNOWN_MODEL", id="model"),
    ],
)
def test_a_bad_body_is_refused(client: TestClient, body: bytes, status: int, code: str) -> None:
    problem(client.post(GENERATIONS, content=body, headers=JSON), status, code)


@pytest.mark.parametrize("text", ["\x00", "\ud800", " ", ""])
def test_a_bad_document_is_refused(client: TestClient, text: str) -> None:
    body = json.dumps({"text": text})
    problem(client.post(EMBEDDINGS, content=body, headers=JSON), 422, "INVALID_INPUT")


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_a_body_that_is_not_declared_as_json_is_refused(
    client: TestClient, content_type: str | None
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    response = client.post(GENERATIONS, content=b'{"prompt": "x"}', headers=headers)
    assert "application/json" in problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")["detail"]


def test_each_wrong_field_is_named_and_none_is_quoted(client: TestClient) -> None:
    body = {
        "promt": "private",
        "a private prompt in the wrong place": 1,
        "messages": [{"role": "private", "content": "private"}],
        "seed": "private",
    }
    response = client.post(GENERATIONS, json=body)
    faults = problem(response, 422, "INVALID_INPUT")["errors"]
    assert {fault["location"] for fault in faults} == {
        "body.promt",
        "body.?",
        "body.messages.0.role",
        "body.seed",
    }
    assert "private" not in response.text


@pytest.mark.parametrize(
    "body",
    [
        {str(number): 1 for number in range(1_000)},
        {"messages": [{str(number): 1 for number in range(1_000)}]},
        {"messages": [1] * 1_000},
        {"prompt": "x", "stop": [1] * 1_000},
    ],
    ids=["fields", "fields of a message", "messages", "stops"],
)
def test_a_heap_of_mistakes_is_not_looked_through(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post(GENERATIONS, json=body)
    assert len(problem(response, 422, "INVALID_INPUT")["errors"]) == 1


@pytest.mark.parametrize("key", ["", "k" * 201, "a\x00b"])
def test_a_bad_idempotency_key_is_refused(client: TestClient, key: str) -> None:
    response = client.post(GENERATIONS, json={"prompt": "x"}, headers={"Idempotency-Key": key})
    problem(response, 422, "INVALID_INPUT")


def test_no_body_whatever_makes_the_server_fail(client: TestClient) -> None:
    text = st.text(max_size=5) | st.sampled_from(["\x00", "\ud800", "user", "demo"])
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
        max_leaves=8,
    )
    fields = GenerationBody.model_fields | EmbeddingBody.model_fields | Message.model_fields
    names = st.sampled_from(sorted(fields))
    message = st.dictionaries(names | text, values, max_size=3)
    bodies = st.dictionaries(names | text, values | st.lists(message, max_size=2)) | values

    @effort(max_examples=60, deadline=None)
    @given(st.sampled_from([GENERATIONS, EMBEDDINGS]), bodies, st.booleans())
    def check(path: str, body: object, valid: bool) -> None:
        if valid and isinstance(body, dict):
            body = {"prompt" if path == GENERATIONS else "text": "x", **body}
        response = client.post(path, content=json.dumps(body), headers=JSON)
        assert response.status_code in {202, 422}, response.text
        if response.status_code == 422:
            problem(response, 422, response.json()["code"])

    check()


# Limits of the door


def test_a_large_body_is_refused(settings: Settings) -> None:
    with opened(settings, max_body_bytes=1_000) as stack, serve(stack) as client:
        fits = json.dumps({"prompt": "x" * 900})
        assert client.post(GENERATIONS, content=fits, headers=JSON).status_code == 202
        large = json.dumps({"prompt": "x" * 1_000})
        response = client.post(GENERATIONS, content=large, headers=JSON)
        problem(response, 413, "CONTENT_TOO_LARGE")


def test_a_large_body_without_length_is_read_no_further_than_the_limit(settings: Settings) -> None:
    with opened(settings, max_body_bytes=1_000) as stack, serve(stack) as client:
        read: list[int] = []
        key = client.headers["authorization"]
        sent = asyncio.run(_send(client.app, [b"x" * 300] * 100, key, read))
        assert sent[0]["status"] == 413
        assert (b"content-type", b"application/problem+json") in sent[0]["headers"]
        assert sum(read) <= 1_200


def test_only_known_hosts_are_answered(settings: Settings) -> None:
    with opened(settings, allowed_hosts=["api.example.org"]) as stack, serve(stack) as client:
        assert client.get(JOBS, headers={"Host": "api.example.org"}).status_code == 200
        problem(client.get(JOBS, headers={"Host": "evil.example"}), 400, "BAD_REQUEST")


def test_unknown_addresses_and_methods_are_problems(client: TestClient) -> None:
    problem(client.get("/nothing/here"), 404, "NOT_FOUND")
    problem(client.get(f"{JOBS}/"), 404, "NOT_FOUND")
    response = client.delete(GENERATIONS)
    problem(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "POST"


# Who may


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", JOBS), ("POST", GENERATIONS), ("GET", RUNS), ("POST", f"{RUNS}/embeddings")],
)
def test_nobody_gets_in_without_a_key(stack: WorkerServices, method: str, path: str) -> None:
    with TestClient(create_app(stack)) as client:
        for name, value in (
            ("X-Other", "x"),
            ("Authorization", "Bearer ps_wrong"),
            ("Authorization", "Bearer"),
            ("Authorization", "Basic cHM6cHM="),
            ("Authorization", "Bearer other"),
            ("X-API-Key", "ps_wrong"),
            ("X-API-Key", ""),
            ("X-API-Key", "ps_\u00e9\x00"),
        ):
            headers = [(name.encode(), value.encode("latin-1"))]
            response = client.request(method, path, headers=headers, json={"prompt": 1})
            code = "TOKEN_MALFORMED" if value == "Bearer other" else "NOT_AUTHENTICATED"
            problem(response, 401, code)
            assert response.headers["www-authenticate"] == "Bearer"


def test_either_header_carries_the_key(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Ada")
    with TestClient(create_app(stack)) as client:
        assert client.get(JOBS, headers={"X-API-Key": key}).status_code == 200
        assert client.get(JOBS, headers={"Authorization": f"bearer {key}"}).status_code == 200


def test_two_keys_of_which_one_is_wrong_are_refused(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Ada")
    right = ("X-API-Key", key)
    with TestClient(create_app(stack)) as client:
        for header in (
            ("Authorization", "Bearer ps_wrong"),
            ("Authorization", "Basic cHM6cHM="),
            ("Authorization", ""),
            ("X-API-Key", "ps_wrong"),
        ):
            for headers in ([right, header], [header, right]):
                problem(client.get(JOBS, headers=headers), 401, "NOT_AUTHENTICATED")
        both = [right, ("Authorization", f"Bearer {key}")]
        assert client.get(JOBS, headers=both).status_code == 200


def test_names_are_of_one_line_and_command_no_terminal(client: TestClient) -> None:
    for bad in ("x\r\nX-Evil: 1", "\x1b[31mred", "a\u2028b", "left\u202eright", "x" * 3_000):
        for path, body in (
            (GENERATIONS, {"prompt": "x", "provider": "openai", "model": bad}),
            (GENERATIONS, {"prompt": "x", "provider": bad}),
            (
                GENERATIONS,
                {"prompt": "x", "fallbacks": [{"provider": "openai", "model": bad}]},
            ),
            (EMBEDDINGS, {"text": "x", "source": bad}),
            (f"{RUNS}/embeddings", {"items": ["x"], "name": bad}),
            (f"{RUNS}/embeddings", {"items": [{"text": "x", "custom_id": bad}]}),
        ):
            response = client.post(path, json=body)
            assert response.status_code == 422, (path, bad)
            assert bad not in response.text


def test_an_administrators_right_is_the_keys_and_ends_with_it(stack: WorkerServices) -> None:
    with serve(stack, "ada@example.org") as ada, serve(stack, "eve@example.org") as older:
        theirs = ada.post(GENERATIONS, json={"prompt": "x"}).json()["id"]
        with serve(stack, "eve@example.org", is_admin=True) as admin:
            assert admin.get(f"{JOBS}/{theirs}").status_code == 200
            problem(older.get(f"{JOBS}/{theirs}"), 404, "NOT_FOUND")
            [key] = [key for key in stack.keys.get_all() if Scope.ADMIN in key.scopes]
            stack.keys.revoke(key.id)
            problem(admin.get(f"{JOBS}/{theirs}"), 401, "KEY_REVOKED")
        problem(older.get(f"{JOBS}/{theirs}"), 404, "NOT_FOUND")


def test_others_jobs_do_not_exist_and_administrators_see_all(
    stack: WorkerServices, client: TestClient, stranger: TestClient
) -> None:
    mine = client.post(GENERATIONS, json={"prompt": "x"}).json()["id"]
    for response in (
        stranger.get(f"{JOBS}/{mine}"),
        stranger.post(f"{JOBS}/{mine}/cancel"),
        stranger.post(f"{JOBS}/{mine}/retry"),
        stranger.get(f"{JOBS}/{uuid4()}"),
    ):
        problem(response, 404, "NOT_FOUND")
    assert stranger.get(JOBS).json()["jobs"] == []
    with serve(stack, "root@example.org", is_admin=True) as admin:
        assert admin.get(f"{JOBS}/{mine}").status_code == 200
        assert [job["id"] for job in admin.get(JOBS, params={"owner": "all"}).json()["jobs"]] == [
            mine
        ]
        assert admin.get(JOBS).json()["jobs"] == []
        assert admin.post(f"{JOBS}/{mine}/cancel").json()["state"] == "cancelled"


# Jobs


def test_pages_of_jobs_hold_each_once_newest_first(client: TestClient) -> None:
    made = [client.post(GENERATIONS, json={"prompt": "x"}).json()["id"] for _ in range(5)]
    made.append(client.post(EMBEDDINGS, json={"text": "x"}).json()["id"])
    seen: list[str] = []
    query: dict[str, str] = {"limit": "2"}
    pages = 0
    while True:
        page = client.get(JOBS, params=query).json()
        seen += [job["id"] for job in page["jobs"]]
        pages += 1
        if page["after"] is None:
            break
        query["after"] = page["after"]
    assert (seen, pages) == (made[::-1], 3)


def test_jobs_are_listed_by_state_and_kind(client: TestClient) -> None:
    queued = client.post(GENERATIONS, json={"prompt": "x"}).json()["id"]
    ended = client.post(EMBEDDINGS, json={"text": "x"}).json()["id"]
    client.post(f"{JOBS}/{ended}/cancel")

    def listed(**query: str) -> list[str]:
        return [job["id"] for job in client.get(JOBS, params=query).json()["jobs"]]

    assert listed(state="queued") == listed(kind="generation") == [queued]
    assert listed(state="cancelled") == listed(kind="embedding") == [ended]
    assert listed(state="queued", kind="embedding") == []


def test_a_bad_query_is_refused(client: TestClient) -> None:
    for query in ("limit=0", "limit=101", "limit=x", "after=x", "state=x", "kind=x", "stat=queued"):
        faults = problem(client.get(f"{JOBS}?{query}"), 422, "INVALID_INPUT")["errors"]
        assert [fault["location"] for fault in faults] == [f"query.{query.split('=')[0]}"]


def test_an_id_that_is_none_is_refused(client: TestClient) -> None:
    for path in ("nonsense", "%00", "%ff", "nonsense/cancel"):
        method = "POST" if "/" in path else "GET"
        problem(client.request(method, f"{JOBS}/{path}"), 422, "INVALID_INPUT")


def test_cancel_and_retry_follow_the_job(client: TestClient, stack: WorkerServices) -> None:
    job = client.post(GENERATIONS, json={"prompt": "x"}).json()["id"]
    problem(client.post(f"{JOBS}/{job}/retry"), 409, "WRONG_STATE")
    cancelled = client.post(f"{JOBS}/{job}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    problem(client.post(f"{JOBS}/{job}/cancel"), 409, "WRONG_STATE")
    assert client.post(f"{JOBS}/{job}/retry").json()["state"] == "queued"
    assert stack.jobs.get(UUID(job)).state is JobState.QUEUED


# Servers away, and faults of our own


def test_without_the_database_callers_are_told_to_come_again(settings: Settings) -> None:
    url = f"postgresql+psycopg2://postgres@{NOBODY}/x"
    with opened(settings, database_url=url) as stack, TestClient(create_app(stack)) as client:
        response = client.get(JOBS, headers={"X-API-Key": "ps_any"})
        problem(response, 503, "LEDGER_UNAVAILABLE")
        assert int(response.headers["retry-after"]) > 0
        health = client.get("/healthz")
        assert health.status_code == 503
        expected = {"version": "0.1.0", "database": False, "redis": True, "workers": None}
        assert health.json() == expected


def test_an_outdated_schema_is_a_problem(settings: Settings, servers: ServerUrls) -> None:
    url = servers.database_url
    with opened(settings, database_url=url) as stack, TestClient(create_app(stack)) as client:
        problem(client.get(JOBS, headers={"X-API-Key": "ps_any"}), 503, "LEDGER_OUTDATED")


def test_health_is_quick_when_servers_hang(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        changes = {
            "database_url": f"postgresql+psycopg2://postgres@{address}/x",
            "redis_url": f"redis://{address}/0",
        }
        with opened(settings, **changes) as stack, TestClient(create_app(stack)) as client:
            for _ in range(2):
                started = time.monotonic()
                response = client.get("/healthz")
                assert time.monotonic() - started < 1.5
                assert response.status_code == 503
                assert response.json()["redis"] is False


def test_health_needs_no_key_and_counts_workers(stack: WorkerServices) -> None:
    with stack.ledger.transaction() as unit:
        unit.heartbeats.beat(stack.worker_id, "here", 1)
    with TestClient(create_app(stack)) as client:
        response = client.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {"version": "0.1.0", "database": True, "redis": True, "workers": 1}


def test_an_unexpected_error_tells_nothing_from_the_inside(
    client: TestClient,
    stack: WorkerServices,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(prompt)

    prompt = "a private prompt"
    monkeypatch.setattr(stack.jobs, "get_page", fail)
    with caplog.at_level(logging.DEBUG):
        response = client.get(JOBS)
    problem(response, 500, "INTERNAL_SERVER_ERROR")
    frames = "".join(getattr(record, "frames", "") for record in caplog.records)
    assert prompt not in response.text + caplog.text + frames
    assert "ValueError" in caplog.text
    assert "api/http/jobs.py" in frames


def test_an_error_knows_when_to_come_again(
    client: TestClient, stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise LedgerUnavailable("Away.", retry_after=2.5)

    monkeypatch.setattr(stack.jobs, "get_page", fail)
    assert client.get(JOBS).headers["retry-after"] == "3"


def test_the_description_of_the_api_names_problems(client: TestClient) -> None:
    description = client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"], path
            for status in ("4XX", "5XX"):
                assert "application/problem+json" in operation["responses"][status]["content"]


@pytest.mark.parametrize(
    ("path", "methods"), [("/jobs", "GET"), ("/keys", "GET, POST"), ("/healthz", "")], ids=str
)
def test_a_wrong_method_is_told_all_that_fit(client: TestClient, path: str, methods: str) -> None:
    response = client.request("TRACE", f"/api/v1{path}")
    assert response.status_code == (405 if methods else 404)
    assert set(methods.split(", ")) <= set(response.headers.get("allow", "").split(", "))


def test_an_address_is_not_taken_for_an_id(client: TestClient) -> None:
    response = client.get(f"{RUNS}/embeddings")
    problem(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "POST"
    problem(client.get(f"{RUNS}/x"), 422, "INVALID_INPUT")
    problem(client.patch("/api/v1/webhooks/secret"), 405, "METHOD_NOT_ALLOWED")


async def _send(app: Any, chunks: list[bytes], key: str, read: list[int]) -> list[ASGIMessage]:
    """Send a body in chunks, without its length; `read` is told the size of each chunk taken."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": GENERATIONS,
        "raw_path": GENERATIONS.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"testserver"),
            (b"content-type", b"application/json"),
            (b"authorization", key.encode()),
        ],
        "client": ("testclient", 1),
        "server": ("testserver", 80),
        "state": {},
    }
    waiting = iter(chunks)
    sent: list[ASGIMessage] = []

    async def receive() -> ASGIMessage:
        chunk = next(waiting, b"")
        read.append(len(chunk))
        return {"type": "http.request", "body": chunk, "more_body": bool(chunk)}

    async def send(message: ASGIMessage) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def _post(app: Any, body: bytes, key: str) -> int:
    sent = await _send(app, [body], key, [])
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b'{"prompt": "x", "options": {"delay_seconds": 1e-400}}', "a double holds"),
        (b'{"prompt": "x", "options": {"a": 1e400}}', "a double holds"),
        (b'{"prompt": "x", "options": {"a": 1, "a": 2}}', "a name twice"),
        (b'{"prompt": "x", "prompt": "y"}', "a name twice"),
        (b'{"prompt": "x", "options": {"a": ' + b"9" * 5_000 + b"}}", "too many digits"),
        (b'{"prompt": "x", "options": {"a": NaN}}', "NaN"),
        (b'{"prompt": "x", "padding": "' + b"x" * 40_000 + b'", "n": -Infinity}', "-Infinity"),
    ],
)
def test_a_body_with_what_would_be_changed_is_refused(
    client: TestClient, body: bytes, what: str
) -> None:
    found = client.post(GENERATIONS, content=body, headers=JSON)
    assert what in problem(found, 422, "INVALID_INPUT")["detail"]


def test_options_keep_their_numbers(stack: WorkerServices, client: TestClient) -> None:
    options = b'{"a": 6.02214076e23, "b": 1.0, "c": 123456789012345678901234567890, "d": 1e16}'
    body = b'{"prompt": "x", "provider": "openai", "options": ' + options + b"}"
    found = client.post(GENERATIONS, content=body, headers=JSON)
    assert found.status_code == 202, found.text
    with stack.ledger.transaction() as unit:
        job = unit.jobs.get(UUID(found.json()["id"]))
        assert job is not None
        # Not compared as they are: 1.0 is 1, and is not to become it.
        assert json.dumps(job.request["options"]) == json.dumps(json.loads(options))


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (GENERATIONS, {"prompt": "x", "temperature": 9}, "/temperature"),
        (
            GENERATIONS,
            {"messages": [{"role": "user", "content": "x"}, {"role": 1}]},
            "/messages/1/role",
        ),
        (GENERATIONS, {"messages": [{"role": 1, "content": ""}]}, "/messages/0/role"),
        (GENERATIONS, {"messages": [{"role": "user"}]}, "/messages/0"),
        (EMBEDDINGS, {}, "/text"),
        (f"{JOBS}?limit=0", None, "limit"),
    ],
    ids=["number", "two", "role", "message", "missing", "query"],
)
def test_the_field_at_fault_is_named(
    client: TestClient, path: str, body: Any, field: str | None
) -> None:
    response = client.get(path) if body is None else client.post(path, json=body)
    refused = problem(response, 422, "INVALID_INPUT")
    assert refused.get("field") == field, refused
