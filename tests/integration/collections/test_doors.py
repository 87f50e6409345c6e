"""Collections, documents and search over HTTP and on the command line."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.repositories.models import JobState
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import execute
from tests.runs import in_ledger

PREFIX = "/api/v1"


@pytest.fixture
def ada(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


@pytest.fixture
def eve(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack, "eve@example.org") as client:
        yield client


def put(stack: WorkerServices, client: TestClient, source: str, text: str, **how: Any) -> Any:
    """Put a document into a collection, and embed it."""
    collection = how.pop("collection", "default")
    body = {"text": text, "source": source, "provider": "local", **how}
    answer = client.put(f"{PREFIX}/collections/{collection}/documents", json=body)
    assert answer.status_code == 202, answer.text
    said = answer.json()
    assert answer.headers["Location"] == f"{PREFIX}/jobs/{said['job']['id']}"
    assert execute(stack, UUID(said["job"]["id"])).state is JobState.SUCCEEDED
    return said["document"]


def search(client: TestClient, **body: Any) -> Any:
    answer = client.post(f"{PREFIX}/search", json={"provider": "local", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["matches"]


def test_a_collection_over_http(stack: WorkerServices, ada: TestClient) -> None:
    made = ada.post(f"{PREFIX}/collections", json={"name": "books", "description": "Mine."})
    assert made.status_code == 201, made.text
    books = made.json()
    listed = ada.get(f"{PREFIX}/collections?count=true").json()
    assert [one["name"] for one in listed["collections"]] == ["books", "default"]
    assert listed["count"] == 2
    url = f"{PREFIX}/collections/{books['id']}"
    changed = ada.patch(url, json={"name": "shelf"}).json()
    assert (changed["name"], changed["description"]) == ("shelf", "Mine.")
    assert ada.get(f"{PREFIX}/collections/shelf").json()["id"] == books["id"]
    problem(ada.get(f"{PREFIX}/collections/books"), 404, "NOT_FOUND")
    problem(ada.patch(url, json={"name": "default"}), 409, "COLLECTION_EXISTS")
    problem(ada.post(f"{PREFIX}/collections", json={"name": "all"}), 422, "INVALID_INPUT")
    problem(ada.delete(f"{PREFIX}/collections/default"), 409, "WRONG_STATE")
    gone = ada.delete(url)
    assert gone.status_code == 202
    assert gone.headers["Location"] == url
    assert gone.json()["deleted_at"]
    stack.content_maintenance.run_once()
    problem(ada.get(url), 404, "NOT_FOUND")


def test_a_collection_is_made_once_a_key(ada: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    answers = [
        ada.post(f"{PREFIX}/collections", json={"name": "books"}, headers=headers) for _ in range(2)
    ]
    assert answers[0].json() == answers[1].json()
    other = ada.post(f"{PREFIX}/collections", json={"name": "x"}, headers=headers)
    problem(other, 409, "IDEMPOTENCY_CONFLICT")


def test_a_document_over_http(stack: WorkerServices, ada: TestClient) -> None:
    said = "The owl sleeps by day."
    document = put(stack, ada, "owl", said, metadata={"lang": "en"})
    url = f"{PREFIX}/documents/{document['id']}"
    shown = ada.get(url).json()
    assert (shown["text"], shown["bytes"], shown["chunks"]) == (said, len(said), 1)
    assert shown["metadata"] == {"lang": "en"}
    only = ada.put(
        f"{PREFIX}/collections/default/documents",
        json={"text": "x", "source": "x", "embed": False},
    )
    assert only.status_code == 202
    assert only.json()["job"] is None
    assert only.json()["document"]["chunks"] == 0
    documents = f"{PREFIX}/collections/default/documents"
    for query, sources in (
        ({}, ["x", "owl"]),
        ({"limit": 1}, ["x"]),
        ({"after": only.json()["document"]["id"]}, ["owl"]),
        ({"source": "owl"}, ["owl"]),
        ({"where": '{"lang": "en"}'}, ["owl"]),
        ({"where": '{"lang": "fr"}'}, []),
    ):
        found = ada.get(documents, params=query).json()["documents"]
        assert [one["source"] for one in found] == sources
    for where in ("[]", "{", '{"a": "\\u0000"}'):
        problem(ada.get(documents, params={"where": where}), 422, "INVALID_INPUT")
    assert ada.delete(url).status_code == 204
    problem(ada.get(url), 404, "NOT_FOUND")
    stack.content_maintenance.run_once()
    assert in_ledger(stack, "SELECT count(*) FROM embeddings") == 0


def test_search_over_http(stack: WorkerServices, ada: TestClient) -> None:
    owl = put(stack, ada, "owl", "The owl sleeps by day.", metadata={"lang": "en"})
    put(stack, ada, "boat", "A boat left the harbour.")
    [best, _] = search(ada, query="a sleeping owl")
    assert best["document_id"] == owl["id"]
    assert best["metadata"] == {"lang": "en"}
    words = [best["text"][begin:end] for begin, end in best["highlights"]]
    assert words == ["owl", "sleeps"]
    assert len(search(ada, query="harbour", where={"lang": "en"}, hybrid=True)) == 1
    vector = np.ones(256).tolist()
    assert len(search(ada, vector=vector)) == 2
    for body in (
        {},
        {"query": "a", "vector": vector},
        {"vector": vector, "hybrid": True},
        {"query": "a", "collections": []},
        {"query": "a", "collections": ["a"] * 101},
        {"query": "a" * 10_001},
        {"query": "a", "limit": 1_001},
        {"vector": [1e39]},
        {"vector": [1.0]},
        {"vector": [1.0] * 16_001},
        {"query": "a", "run_id": owl["id"], "collections": ["default"]},
    ):
        answer = ada.post(f"{PREFIX}/search", json={"provider": "local", **body})
        problem(answer, 422, "INVALID_INPUT")


def test_two_users_never_see_each_others_things(
    stack: WorkerServices, ada: TestClient, eve: TestClient
) -> None:
    document = put(stack, ada, "owl", "The owl sleeps by day.")
    put(stack, eve, "boat", "A boat left the harbour.")
    place = document["collection_id"]
    for method, path, body in (
        ("GET", f"/collections/{place}", None),
        ("PATCH", f"/collections/{place}", {"description": "x"}),
        ("DELETE", f"/collections/{place}", None),
        ("GET", f"/collections/{place}/documents", None),
        ("PUT", f"/collections/{place}/documents", {"text": "x", "source": "x"}),
        ("GET", f"/documents/{document['id']}", None),
        ("DELETE", f"/documents/{document['id']}", None),
        ("POST", "/search", {"query": "x", "provider": "local", "collections": [place]}),
        ("POST", "/embeddings", {"text": "x", "source": "x", "collection": place}),
    ):
        problem(eve.request(method, PREFIX + path, json=body), 404, "NOT_FOUND")
    for how in ({}, {"collections": ["all"]}, {"hybrid": True}):
        assert [one["source"] for one in search(eve, query="the owl", **how)] == ["boat"]


def test_an_administrator_reaches_all_by_id(stack: WorkerServices, ada: TestClient) -> None:
    document = put(stack, ada, "owl", "The owl sleeps by day.")
    place = document["collection_id"]
    with serve(stack, "root@example.org", is_admin=True) as root:
        assert root.get(f"{PREFIX}/documents/{document['id']}").status_code == 200
        assert root.get(f"{PREFIX}/collections/default").json()["documents"] == 0
        assert root.get(f"{PREFIX}/collections/{place}").json()["documents"] == 1
        assert search(root, query="owl") == []
        assert len(search(root, query="owl", collections=[place])) == 1
        assert root.delete(f"{PREFIX}/documents/{document['id']}").status_code == 204
        books = ada.post(f"{PREFIX}/collections", json={"name": "books"}).json()
        assert root.delete(f"{PREFIX}/collections/{books['id']}").status_code == 202
    actions = [one.action for one in stack.audit.get_many(limit=2)]
    assert actions == ["collection.deleted", "document.deleted"]


def test_the_commands(stack: WorkerServices, environment: dict[str, str]) -> None:
    def run(*command: str) -> Any:
        result = CliRunner().invoke(build(), [*command, "--json"], env=environment)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    books = run("collections", "create", "books")
    assert {one["name"] for one in run("collections", "list")["items"]} == {"books", "default"}
    for name, said in (("books", "A boat left the harbour."), ("default", "The owl sleeps.")):
        put_ = stack.documents.put(said, source=name, provider="local", collection=name)
        assert put_.job is not None
        execute(stack, put_.job.id)
    assert run("collections", "show", "books")["documents"] == 1
    [document] = run("documents", "list", "--collection", "books")["items"]
    assert run("documents", "show", document["id"])["text"] == "A boat left the harbour."
    asked = ("search", "a boat", "--provider", "local")
    assert [one["source"] for one in run(*asked)["items"]] == ["default"]
    found = run(*asked, "--collection", "books", "--hybrid")["items"]
    assert [one["source"] for one in found] == ["books"]
    assert len(run(*asked, "--collection", "all")["items"]) == 2
    result = CliRunner().invoke(build(), ["documents", "delete", document["id"]], env=environment)
    assert result.exit_code == 0, result.output
    assert run("collections", "delete", "books")["id"] == books["id"]
    stack.content_maintenance.run_once()
    assert [one["name"] for one in run("collections", "list")["items"]] == ["default"]
