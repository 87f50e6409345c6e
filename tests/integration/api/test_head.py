"""HEAD answers as GET, without a body."""

import pytest
from httpx2 import Client

from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server

API = "/api/v1"


@pytest.fixture
def key(stack: WorkerServices) -> str:
    return stack.keys.create("ada@example.org", "Test")


def test_head_answers_as_get_without_a_body(stack: WorkerServices, key: str) -> None:
    with live_server(stack) as (_, url), Client(base_url=url, timeout=30) as http:
        for path, status in (
            ("/healthz", 200),
            ("/openapi.json", 200),
            (f"{API}/jobs", 200),
            (f"{API}/jobs?limit=x", 422),
            (f"{API}/no-such", 404),
            (f"{API}/generations", 405),
            ("/openai/v1/models", 200),
        ):
            headers = {"Authorization": f"Bearer {key}"}
            shown, head = http.get(path, headers=headers), http.head(path, headers=headers)
            assert (head.status_code, head.content) == (status, b""), path
            assert shown.status_code == status
            for name in ("content-type", "content-length", "allow"):
                assert head.headers.get(name) == shown.headers.get(name), path
        assert http.head(f"{API}/jobs").status_code == 401


def test_head_of_events_ends_at_once_and_the_connection_serves_on(
    stack: WorkerServices, key: str
) -> None:
    with live_server(stack) as (_, url), Client(base_url=url, timeout=30) as http:
        http.headers["Authorization"] = f"Bearer {key}"
        owner = stack.keys.authenticate(key).user_id
        job = stack.jobs.enqueue_generation("Hello.", provider="demo", user_id=owner)
        head = http.head(f"{API}/jobs/{job.id}/events")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-type"].startswith("text/event-stream")
        assert http.get(f"{API}/jobs/{job.id}").json()["state"] == "queued"
