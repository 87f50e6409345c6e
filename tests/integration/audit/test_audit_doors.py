"""The audit log over HTTP and on the command line."""

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from typer.testing import CliRunner

from promptstack.api.cli import audit
from promptstack.api.cli.main import build
from promptstack.repositories.access_models import Role
from promptstack.repositories.audit_models import ActorKind
from promptstack.repositories.models import new_id
from promptstack.services.access.key_terms import KeyTerms
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve, sign_in
from tests.jobs import execute
from tests.mail_server import mail_server
from tests.mails import with_mail

MARK = "marmalade"
ADA = Actor(ActorKind.USER, uuid4(), "ada@example.org", None, "203.0.113.7")


@pytest.fixture
def mailing(stack: WorkerServices) -> Iterator[WorkerServices]:
    with mail_server() as server, with_mail(stack, server) as opened:
        yield opened


def record(stack: WorkerServices, name: str, action: Action = Action.FLAG_CHANGED) -> None:
    with stack.ledger.transaction() as unit:
        stack.audit.record(unit, actor=ADA, action=action, object=ObjectKind.FLAG.of(name))


def test_administrators_read_it_page_by_page(stack: WorkerServices) -> None:
    for number in range(5):
        record(stack, f"flag-{number}")
    record(stack, "other", Action.KEY_REVOKED)
    with serve(stack, "root@example.org", is_admin=True) as client:

        def get(**query: Any) -> Any:
            response = client.get("/api/v1/audit", params=query)
            assert response.status_code == 200, response.text
            return response.json()

        first = get(action="flag", limit=3)
        assert [entry["object_id"] for entry in first["entries"]] == ["flag-4", "flag-3", "flag-2"]
        second = get(action="flag", limit=3, after=first["after"])
        assert [entry["object_id"] for entry in second["entries"]] == ["flag-1", "flag-0"]
        assert second["after"] is None
        assert [one["action"] for one in get(object="other")["entries"]] == ["key.revoked"]
        assert {one["email"] for one in get(actor="ADA@example.org")["entries"]} == {ADA.email}
        assert get(until="2020-01-01")["entries"] == []


@pytest.mark.parametrize(
    "query", ["limit=501", "limit=0", "unknown=1", "since=soon", "after=x", f"actor={'a' * 201}"]
)
def test_a_wrong_query_is_refused(stack: WorkerServices, query: str) -> None:
    with serve(stack, "root@example.org", is_admin=True) as client:
        problem(client.get(f"/api/v1/audit?{query}"), 422, "INVALID_INPUT")


def test_others_read_none_of_it(stack: WorkerServices) -> None:
    with serve(stack) as client:
        problem(client.get("/api/v1/audit"), 403, "NOT_PERMITTED")


def cli(*arguments: str) -> str:
    result = CliRunner().invoke(build(), arguments, prog_name="promptstack")
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def test_the_command_shows_it(stack: WorkerServices) -> None:
    record(stack, "flag-1")
    record(stack, "other", Action.KEY_REVOKED)
    shown = cli("audit", "--action", "flag")
    assert "flag.changed" in shown
    assert "flag flag-1" in shown
    assert "other" not in shown
    [entry] = json.loads(cli("audit", "--object", "other", "--json"))["items"]
    assert (entry["email"], entry["action"]) == (ADA.email, "key.revoked")
    assert cli("audit", "--until", "2020-01-01", "--since", "2019-01-01") == "No entries.\n"


def test_following_prints_what_comes(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line an entry, so that a collector can read it; also one that was committed late."""
    record(stack, "before")
    late = new_id()
    names = iter(["while", "it runs"])

    def rest(_: float) -> None:
        name = next(names, None)
        if name == "it runs":
            with stack.ledger.transaction() as unit:
                given = {"id": late, "actor_kind": "system", "action": "x", "address": ""}
                unit.audit.create(**given, object_id="late")
        if name is None:
            raise RuntimeError("enough")
        record(stack, name)

    monkeypatch.setattr(audit, "time", SimpleNamespace(sleep=rest))
    result = CliRunner().invoke(build(), ["audit", "--follow", "--json"])
    assert str(result.exception) == "enough"
    lines = [json.loads(line)["object_id"] for line in result.stdout.splitlines()]
    assert lines == ["before", "while", "late", "it runs"]


def entries(stack: WorkerServices, action: str) -> list[AuditView]:
    return stack.audit.get_many(action=action)


def user_of(stack: WorkerServices, email: str) -> UUID:
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(email)
        assert user is not None
        return user.id


def retry_many(stack: WorkerServices, client: TestClient, filter_: dict[str, str]) -> int:
    """How many jobs an operation retries, with the worker's part done here."""
    body = {"action": "retry", "filter": filter_}
    started = client.post("/api/v1/operations", json=body)
    execute(stack, UUID(started.json()["id"]))
    done: int = client.get(started.headers["location"]).json()["done"]
    return done


def test_what_an_administrator_does_to_others_jobs_is_on_record(stack: WorkerServices) -> None:
    with serve(stack) as ada:
        job = ada.post("/api/v1/generations", json={"prompt": MARK}).json()["id"]
        own = ada.post("/api/v1/generations", json={"prompt": MARK}).json()["id"]
        ada.post(f"/api/v1/jobs/{own}/cancel")
        ada.post(f"/api/v1/jobs/{own}/retry")
        assert entries(stack, "job") == [], "one's own work is nobody else's business"
        owner = user_of(stack, "ada@example.org")
    with serve(stack, "root@example.org", is_admin=True) as root:
        assert root.post(f"/api/v1/jobs/{job}/cancel").status_code == 200
        assert root.post(f"/api/v1/jobs/{job}/retry").status_code == 200
        assert root.post(f"/api/v1/jobs/{job}/retry").status_code == 409
        assert retry_many(stack, root, {"state": "cancelled"}) == 0
        root.post(f"/api/v1/jobs/{job}/cancel")
        assert retry_many(stack, root, {"state": "cancelled", "owner": "all"}) == 1
    [many] = entries(stack, "job.retried_many")
    assert many.detail["count"] == 1
    assert many.detail["filter"]["state"] == "cancelled"
    assert len(entries(stack, "job.cancelled")) == 2
    [retried] = entries(stack, "job.retried")
    assert (retried.email, retried.object_id) == ("root@example.org", job)
    assert (retried.actor_kind, retried.key_id is None) == (ActorKind.KEY, False)
    assert retried.address == "testclient"
    assert retried.detail == {"owner_id": str(owner), "kind": "generation", "state": "cancelled"}
    assert MARK not in str(stack.audit.get_many())


def test_what_an_administrator_does_to_others_runs_is_on_record(stack: WorkerServices) -> None:
    with serve(stack) as ada:
        body = {"items": [MARK], "provider": "local"}
        run, own = (ada.post("/api/v1/runs/embeddings", json=body).json()["id"] for _ in range(2))
        ada.post(f"/api/v1/runs/{own}/cancel")
        ada.post(f"/api/v1/runs/{own}/retry")
    with serve(stack, "root@example.org", is_admin=True) as root:
        assert root.post(f"/api/v1/runs/{run}/cancel").status_code == 200
        assert root.post(f"/api/v1/runs/{run}/cancel").status_code == 409
        assert root.post(f"/api/v1/runs/{run}/retry").status_code == 200
    found = [(entry.action, entry.object_id, entry.email) for entry in entries(stack, "run")]
    assert found == [
        ("run.retried", run, "root@example.org"),
        ("run.cancelled", run, "root@example.org"),
    ]


def test_what_a_command_does_to_a_users_work_is_on_record(stack: WorkerServices) -> None:
    with serve(stack) as ada:
        job = ada.post("/api/v1/generations", json={"prompt": MARK}).json()["id"]
    nobodys = stack.jobs.enqueue_generation(MARK)
    cli("jobs", "cancel", job, str(nobodys.id))
    [entry] = entries(stack, "job")
    assert (entry.action, entry.object_id) == ("job.cancelled", job)
    assert entry.actor_kind is ActorKind.COMMAND_LINE


def test_no_secret_and_no_content_is_in_it(mailing: WorkerServices) -> None:
    """Whatever is done with them: all of the table is read."""
    with serve(mailing, "root@example.org", is_admin=True) as root:
        made = mailing.keys.issue("root@example.org", KeyTerms(name="nightly"), by=ADA)
        turned = mailing.keys.rotate(made.key.id, by=ADA)
        mailing.keys.revoke(made.key.id)
        person = {"email": "bob@example.org", "password": f"{MARK} nine blue doors"}
        signed_in = sign_in(mailing, "root@example.org", Role.ADMIN)
        said = root.post("/api/v1/users", json=person, headers=signed_in)
        assert said.status_code == 201, said.text
        user = said.json()
        for tried in (person, {**person, "password": MARK}):
            root.post("/api/v1/auth/login", json=tried)
        mail = {"user_id": user["id"], "subject": MARK, "message": MARK}
        keyed = {"Idempotency-Key": MARK}
        sent = root.post("/api/v1/send-notification", json=mail, headers=keyed)
        assert sent.status_code == 202, sent.text
        with serve(mailing) as ada:
            job = ada.post("/api/v1/generations", json={"prompt": MARK})
        root.post(f"/api/v1/jobs/{job.json()['id']}/cancel")
    with mailing.ledger.transaction() as unit:
        rows = [str(row) for row in unit.session.execute(text("SELECT * FROM audit_log"))]
    everything = "\n".join(rows)
    done = ("key.rotated", "user.created", "sign_in", "notification.requested", "job.cancelled")
    for action in done:
        assert action in everything
    for secret in (MARK, made.secret, turned.secret):
        assert secret not in everything
