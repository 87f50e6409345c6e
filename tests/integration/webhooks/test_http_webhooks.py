"""Webhooks over HTTP, and by command."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from promptstack.services.access.users import UserView
from promptstack.services.webhooks.events import EventType
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.http import problem
from tests.integration.api.test_cli_output import told
from tests.integration.webhooks.test_deliveries import LOCAL, VERIFIERS
from tests.jobs import another, execute
from tests.webhooks import Receiver, receiver, send_all, send_due

URL = "https://example.org/hooks?token=marmalade"


@pytest.fixture
def served() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


@pytest.fixture
def allowing(stack: WorkerServices) -> None:
    """Let this machine be told, before the application is made."""
    for name, value in LOCAL.items():
        setattr(stack.settings, name, value)
    employ(stack, FakeProvider())


def made(client: TestClient, **body: Any) -> dict[str, Any]:
    answer = client.post("/api/v1/webhooks", json={"url": URL, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_an_endpoint_is_made_shown_changed_and_deleted(auth_client: TestClient) -> None:
    shown = made(auth_client, events=["run.failed", "run.failed"], description="Mine")
    assert shown.pop("secret").startswith("whsec_")
    assert (shown["url"], shown["events"], shown["enabled"]) == (URL, ["run.failed"], True)
    path = f"/api/v1/webhooks/{shown['id']}"
    assert auth_client.get(path).json() == shown
    [listed] = auth_client.get("/api/v1/webhooks?count=true").json()["webhooks"]
    assert listed == shown

    changed = auth_client.patch(path, json={"events": ["*"], "enabled": False}).json()
    assert (changed["events"], changed["enabled"]) == (["*"], False)
    assert (changed["url"], changed["description"]) == (URL, "Mine")
    assert changed["disabled_reason"] == "It was disabled by hand."
    problem(auth_client.post(f"{path}/test"), 409, "WRONG_STATE")
    problem(auth_client.patch(path, json={"enabled": 0}), 422, "INVALID_INPUT")
    assert auth_client.patch(path, json={"enabled": True}).json()["enabled"]

    rotated = auth_client.post(f"{path}/rotate").json()
    assert rotated["secret"] != shown.get("secret")
    assert rotated["previous_until"] is not None
    assert auth_client.delete(path).status_code == 204
    problem(auth_client.get(path), 404, "NOT_FOUND")


@pytest.mark.parametrize(
    "body",
    [
        {"url": "https://127.0.0.1/"},
        {"url": "http://example.org/"},
        {"url": "https://user@example.org/"},
        {"url": "https://example.org/" + "a" * 2_000},
        {"url": "no address"},
        {"events": []},
        {"events": ["response.exploded"]},
        {"description": "a" * 201},
        {"surprise": 1},
    ],
    ids=lambda body: f"{next(iter(body))} {str(next(iter(body.values())))[:20]}",
)
def test_what_is_no_endpoint_is_refused(auth_client: TestClient, body: dict[str, Any]) -> None:
    given = {"url": URL, **body}
    answer = auth_client.post("/api/v1/webhooks", json=given)
    assert answer.status_code in {400, 422}, answer.text
    mine = made(auth_client)["id"]
    changed = auth_client.patch(f"/api/v1/webhooks/{mine}", json=body)
    assert changed.status_code in {400, 422}, changed.text


def test_a_user_has_so_many_endpoints_and_no_more(
    stack: WorkerServices, auth_client: TestClient
) -> None:
    for _ in range(stack.settings.webhook_endpoints):
        made(auth_client)
    told = problem(auth_client.post("/api/v1/webhooks", json={"url": URL}), 422, "INVALID_INPUT")
    assert "WEBHOOK_ENDPOINTS" in told["detail"]


def test_every_event_can_be_asked_for(auth_client: TestClient) -> None:
    everything = [str(one) for one in EventType]
    assert made(auth_client, events=everything)["events"] == sorted(everything)


def test_a_request_that_is_sent_again_makes_one_endpoint(auth_client: TestClient) -> None:
    headers = {"Idempotency-Key": "k"}
    first = auth_client.post("/api/v1/webhooks", json={"url": URL}, headers=headers)
    again = auth_client.post("/api/v1/webhooks", json={"url": URL}, headers=headers)
    assert first.status_code == 201
    problem(again, 409, "SECRET_SHOWN_BEFORE")
    assert len(auth_client.get("/api/v1/webhooks").json()["webhooks"]) == 1


@pytest.mark.usefixtures("allowing")
def test_a_job_and_its_webhook_from_end_to_end(
    stack: WorkerServices, auth_client: TestClient, served: Receiver
) -> None:
    secret = made(auth_client, url=served.url, events=["response.completed"])["secret"]
    own = auth_client.post("/api/v1/webhooks/secret")
    assert own.status_code == 201
    assert auth_client.get("/api/v1/webhooks/secret").json()["exists"]
    body = {"prompt": "Hello.", "provider": "fake", "webhook": {"url": f"{served.url}/own"}}
    job = auth_client.post("/api/v1/generations", json=body).json()
    execute(stack, UUID(job["id"]))
    send_all(stack)
    by_path = {event.path: event for event in served.taken}
    VERIFIERS["openai"](by_path["/hooks"], secret)
    VERIFIERS["openai"](by_path["/hooks/own"], own.json()["secret"])
    listed = auth_client.get(f"/api/v1/webhooks/deliveries?object_id={job['id']}").json()
    assert {one["url"] for one in listed["deliveries"]} == {None, f"{served.url}/own"}
    assert {one["state"] for one in listed["deliveries"]} == {"delivered"}
    [delivery] = [one for one in listed["deliveries"] if one["url"] is None]
    log = auth_client.get(f"/api/v1/webhooks/{delivery['endpoint_id']}/deliveries").json()
    assert log["deliveries"] == [delivery]
    assert delivery["attempts"][0]["status"] == 204
    base = f"/api/v1/webhooks/{delivery['endpoint_id']}"
    replayed = auth_client.post(f"{base}/deliveries/{delivery['id']}/replay")
    assert (replayed.status_code, replayed.json()["state"]) == (202, "pending")
    tested = auth_client.post(f"{base}/test")
    assert (tested.status_code, tested.json()["type"]) == (202, "webhook.test")
    send_due(stack)
    assert sum(event.id == delivery["event_id"] for event in served.taken) == 3
    assert tested.json()["event_id"] in {event.id for event in served.taken}


@pytest.mark.usefixtures("allowing")
def test_lists_of_jobs_and_runs_take_a_webhook(
    stack: WorkerServices, auth_client: TestClient, served: Receiver
) -> None:
    webhook = {"webhook": {"url": served.url}}
    problem(
        auth_client.post("/api/v1/generations", json={"prompt": "x", **webhook}), 409, "WRONG_STATE"
    )
    auth_client.post("/api/v1/webhooks/secret")
    for path, body in (
        ("/jobs/bulk", {"jobs": [{"prompt": "x", **webhook}]}),
        ("/runs/generations", {"items": ["x"], **webhook}),
        ("/runs/embeddings", {"items": ["x"], **webhook}),
        ("/embeddings", {"text": "x", **webhook}),
    ):
        assert auth_client.post(f"/api/v1{path}", json=body).status_code == 202, path
    refused = {"jobs": [{"prompt": "x", "webhook": {"url": "https://10.0.0.1/"}}]}
    problem(auth_client.post("/api/v1/jobs/bulk", json=refused), 422, "INVALID_INPUT")


def test_what_somebody_does_to_webhooks_is_on_record_without_addresses_and_secrets(
    stack: WorkerServices, auth_client: TestClient, test_user: UserView
) -> None:
    shown = made(auth_client)
    path = f"/api/v1/webhooks/{shown['id']}"
    auth_client.patch(path, json={"url": f"{URL}2"})
    auth_client.post(f"{path}/rotate")
    auth_client.delete(path)
    entries = stack.audit.get_many(object_id=shown["id"])
    assert [one.action for one in entries] == [
        "webhook.deleted",
        "webhook.rotated",
        "webhook.changed",
        "webhook.created",
    ]
    assert all(one.email == test_user.email for one in entries)
    assert "marmalade" not in str(entries)
    assert shown["secret"] not in str(entries)


def test_an_administrator_turns_off_what_others_have(
    stack: WorkerServices, auth_client: TestClient
) -> None:
    theirs = stack.webhooks.create(URL, user_id=stack.users.create("eve@example.org").id).webhook
    path = f"/api/v1/webhooks/{theirs.id}"
    problem(auth_client.patch(path, json={"enabled": False}), 404, "NOT_FOUND")
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email("ada@example.org")
        assert user is not None
        unit.users.update(user, role="admin")
    assert not auth_client.patch(path, json={"enabled": False}).json()["enabled"]
    problem(auth_client.post(f"{path}/rotate"), 404, "NOT_FOUND")


def test_endpoints_of_the_command_line(stack: WorkerServices) -> None:
    shown = told("webhooks", "create", URL, "--event", "run.failed", "--description", "x")
    secret = told("webhooks", "secret")
    assert shown["secret"] != secret["secret"]
    assert told("webhooks", "list")["items"][0]["id"] == shown["id"]
    short = shown["id"][-36:]
    assert told("webhooks", "show", short)["url"] == URL
    assert told("webhooks", "change", short, "--event", "*")["events"] == ["*"]
    assert not told("webhooks", "disable", short)["enabled"]
    assert told("webhooks", "enable", short)["enabled"]
    assert told("webhooks", "rotate", short)["secret"] != shown["secret"]
    sent = told("webhooks", "test", short)
    [logged] = told("webhooks", "deliveries", short)["items"]
    assert logged["id"] == sent["id"]
    assert told("webhooks", "replay", sent["id"])["event_id"] == sent["event_id"]
    assert told("webhooks", "delete", short)["deleted"]
    with another(stack) as other:
        assert other.webhooks.get_page().rows == []
