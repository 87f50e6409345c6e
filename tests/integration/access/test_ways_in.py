"""Ways in that would go around what a key, a person or a proxy may do."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from promptstack.repositories.access_models import Role, Scope
from promptstack.repositories.audit_models import ActorKind
from promptstack.services.access.emails import OPERATOR
from promptstack.services.access.errors import ForgedRequest, IdentityUnknown
from promptstack.services.access.sessions import MOST_SESSIONS, Origin
from promptstack.services.access.users import UserView
from promptstack.services.audit.actor import Actor
from promptstack.tasks.worker_services import WorkerServices
from tests.conftest import PASSWORD
from tests.http import problem
from tests.jobs import execute
from tests.processes import wait_until

API = "/api/v1"
ORIGIN = Origin("192.0.2.7", "test")


def log_in(client: TestClient, password: str = PASSWORD) -> int:
    body = {"email": "ada@example.org", "password": password}
    return client.post(f"{API}/auth/login", json=body).status_code


def test_a_key_of_a_super_admin_makes_nobody_a_way_in(
    stack: WorkerServices, client: TestClient, test_user: UserView
) -> None:
    with stack.ledger.transaction() as unit:
        unit.users.create(email="root@example.org", role=Role.SUPER_ADMIN)
    key = stack.keys.create(
        "root@example.org", "narrow", scopes=list(Scope), providers=["demo"], requests_a_minute=600
    )
    for method, path, body in (
        ("POST", "users", {"email": "eve@example.org", "role": "super_admin"}),
        ("PATCH", f"users/{test_user.id}", {"role": "super_admin"}),
        ("POST", f"users/{test_user.id}/password", {"password": "another long password"}),
        ("POST", "keys", {"name": "wide"}),
        ("PUT", f"budgets/users/{test_user.id}", {"day": None}),
        ("PUT", "budgets/deployment", {"day": None}),
        ("POST", "auth/password", {"current_password": PASSWORD, "new_password": "x" * 20}),
    ):
        response = client.request(method, f"{API}/{path}", json=body, headers={"X-API-Key": key})
        assert "Sign in" in problem(response, 403, "NOT_PERMITTED")["detail"], path


def test_a_limited_key_retries_only_what_came_with_it(
    stack: WorkerServices, client: TestClient
) -> None:
    wide = stack.keys.create("ada@example.org", "wide")
    limited = stack.keys.create("ada@example.org", "limited", models=["demo-*"])
    wide_headers, headers = {"X-API-Key": wide}, {"X-API-Key": limited}

    def ended(path: str, key: dict[str, str], **body: Any) -> str:
        made = client.post(f"{API}/{path}", json=body, headers=key)
        assert made.status_code == 202, made.text
        kind = "runs" if path.startswith("runs") else "jobs"
        id_ = made.json()["id"]
        assert client.post(f"{API}/{kind}/{id_}/cancel", headers=key).status_code == 200
        return f"{API}/{kind}/{id_}/retry"

    of_others = [
        ended("generations", wide_headers, prompt="x"),
        ended("embeddings", wide_headers, text="x"),
        ended("runs/generations", wide_headers, items=["x"], provider="demo"),
    ]
    own = [
        ended("generations", headers, prompt="x"),
        ended("runs/generations", headers, items=["x"], provider="demo"),
    ]
    for path in of_others:
        problem(client.post(path, headers=headers), 403, "NOT_PERMITTED")

    def retried(headers: dict[str, str]) -> int:
        body = {"action": "retry", "filter": {"state": "cancelled"}}
        started = client.post(f"{API}/operations", json=body, headers=headers)
        assert started.status_code == 202, started.text
        execute(stack, UUID(started.json()["id"]))
        done: int = client.get(started.headers["location"], headers=headers).json()["done"]
        return done

    assert retried(headers) == 1
    for path in own[1:]:
        assert client.post(path, headers=headers).status_code == 200
    assert retried(wide_headers) == 2


def test_no_proxy_signs_in_the_command_lines_user(stack: WorkerServices) -> None:
    stack.keys.create(OPERATOR, "x")
    for identity in (OPERATOR, "Operator@LOCALHOST"):
        with pytest.raises(IdentityUnknown):
            stack.sign_in.by_proxy(identity, "127.0.0.1")


def test_an_origin_that_is_none_is_another_site(client: TestClient, test_user: UserView) -> None:
    body = {"email": test_user.email, "password": PASSWORD, "cookie": True}
    for origin in ("http://[", "http://[::1", "null", "http://evil.example"):
        response = client.post(f"{API}/auth/login", json=body, headers={"Origin": origin})
        problem(response, 403, ForgedRequest.code)


def test_weak_new_passwords_lock_nobody_out(auth_client: TestClient) -> None:
    for _ in range(12):
        body = {"current_password": PASSWORD, "new_password": "password1234"}
        response = auth_client.post(f"{API}/auth/password", json=body)
        assert response.status_code == 422, response.text
    assert log_in(auth_client) == 200


def test_signing_in_and_out_ends_no_other_session(
    stack: WorkerServices, test_user: UserView
) -> None:
    def sign_in() -> str:
        with stack.ledger.transaction() as unit:
            user = unit.users.get(test_user.id)
            assert user is not None
            return stack.sessions.open_tokens(unit, user, ORIGIN).access_token

    first = sign_in()
    for _ in range(MOST_SESSIONS + 1):
        stack.sessions.end(stack.sessions.authenticate(sign_in()))
    assert stack.sessions.authenticate(first).user_id == test_user.id
    with stack.ledger.transaction() as unit:
        kept = unit.session.scalar(text("SELECT count(*) FROM sessions"))
    assert kept <= 2 + MOST_SESSIONS


@pytest.mark.parametrize("credential", ["key", "token"])
def test_a_request_does_not_stop_its_user_from_being_disabled(
    stack: WorkerServices, test_user: UserView, credential: str
) -> None:
    """Who is disabled is locked before their sessions; a request that notes its time, too."""
    authenticate: Callable[[str], object]
    with stack.ledger.transaction() as unit:
        user = unit.users.get(test_user.id)
        assert user is not None
        token = stack.sessions.open_tokens(unit, user, ORIGIN).access_token
    if credential == "token":
        authenticate, given = stack.sessions.authenticate, token
    else:
        authenticate, given = stack.keys.authenticate, stack.keys.create(user.email, "x")
    with stack.ledger.transaction() as unit:
        # Else they were here just now, and nothing is noted.
        unit.session.execute(text("UPDATE users SET last_seen_at = NULL"))
        unit.session.execute(text("UPDATE sessions SET last_used_at = now() - interval '1 hour'"))
    request = threading.Thread(target=authenticate, args=[given])
    with stack.ledger.transaction() as unit:
        unit.users.lock(test_user.id)
        request.start()
        wait_until(lambda: waits_for_a_lock(stack), "the request to wait for its user")
        unit.limit_locks(0.5)
        assert unit.sessions.revoke_all(test_user.id) == 1
        unit.session.execute(text("UPDATE api_keys SET last_used_at = now()"))
    request.join(30)
    assert not request.is_alive()


def test_a_sign_in_does_not_stop_its_users_jobs(stack: WorkerServices, test_user: UserView) -> None:
    with stack.ledger.transaction() as unit:
        unit.users.lock(test_user.id)
        with stack.ledger.transaction() as other:
            other.limit_locks(0.5)
            other.users.get(test_user.id)
            stack.jobs.enqueue_generation("x", user_id=test_user.id)


def waits_for_a_lock(stack: WorkerServices) -> bool:
    with stack.ledger.transaction() as unit:
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        return bool(unit.session.scalar(waiting))


def test_what_is_done_by_a_proxy_and_with_a_new_users_key_is_recorded_so(
    stack: WorkerServices, test_user: UserView
) -> None:
    issued = stack.keys.issue(
        test_user.email,
        {"name": "x"},
        by=Actor.of(stack.sign_in.by_proxy(test_user.email, "192.0.2.7")),
    )
    [entry] = stack.audit.get_many(object_id=str(issued.key.id))
    assert (entry.actor_kind, entry.email) == (ActorKind.PROXY, test_user.email)
    assert not issued.is_new_user
    added = stack.keys.issue("typo@example.org", {"name": "laptop"})
    assert added.is_new_user
    user = stack.users.get(stack.users.find("typo@example.org"))
    assert user.name == ""
    [entry] = stack.audit.get_many(object_id=str(user.id))
    assert entry.action == "user.created"
