"""Requests that make something may be sent again: it is made once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from promptstack.api.http.app import create_app
from promptstack.api.http.idempotency import hash_of
from promptstack.repositories.access_models import Role
from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.services.errors import IdempotencyConflict
from promptstack.services.idempotency.claims import claim
from promptstack.services.maintenance.reconciler import Cleanup
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, sign_in


def keyed(user_id: UUID, **given: Any) -> KeyedRequest:
    return KeyedRequest(user_id, **{"key": "k", "action": "make", "request_hash": "h", **given})


@pytest.fixture
def user_id(stack: WorkerServices) -> UUID:
    return stack.users.create("ada@example.org").id


def test_of_many_at_once_one_makes_the_object(stack: WorkerServices, user_id: UUID) -> None:
    def make(_: int) -> UUID:
        mine = new_id()
        with stack.ledger.transaction() as unit:
            return claim(unit, keyed(user_id), mine) or mine

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(40)))) == 1


def test_a_transaction_that_fails_frees_its_key(stack: WorkerServices, user_id: UUID) -> None:
    with stack.ledger.transaction() as unit:
        assert claim(unit, keyed(user_id), new_id()) is None
        unit.session.rollback()
    with stack.ledger.transaction() as unit:
        assert claim(unit, keyed(user_id), new_id()) is None


@pytest.mark.parametrize("other", [{"action": "break"}, {"request_hash": "x"}], ids=str)
def test_a_key_is_for_one_request(
    stack: WorkerServices, user_id: UUID, other: dict[str, str]
) -> None:
    with stack.ledger.transaction() as unit:
        claim(unit, keyed(user_id), new_id())
        with pytest.raises(IdempotencyConflict, match="send a new key"):
            claim(unit, keyed(user_id, **other), new_id())


def test_users_have_keys_of_their_own(stack: WorkerServices, user_id: UUID) -> None:
    bob = stack.users.create("bob@example.org").id
    with stack.ledger.transaction() as unit:
        assert claim(unit, keyed(user_id), new_id()) is None
        assert claim(unit, keyed(bob), new_id()) is None


def test_old_keys_are_forgotten(stack: WorkerServices, user_id: UUID) -> None:
    with stack.ledger.transaction() as unit:
        claim(unit, keyed(user_id, key="old"), new_id())
        unit.session.execute(
            text("UPDATE idempotency_keys SET created_at = now() - interval '2 days'")
        )
        claim(unit, keyed(user_id, key="new"), new_id())
    Cleanup(stack.ledger, jobs_seconds=0.0, attempts_seconds=0.0).run_once()
    with stack.ledger.transaction() as unit:
        assert claim(unit, keyed(user_id, key="old"), new_id()) is not None
    Cleanup(stack.ledger, jobs_seconds=0.0, attempts_seconds=0.0, keys_seconds=86_400.0).run_once()
    with stack.ledger.transaction() as unit:
        assert claim(unit, keyed(user_id, key="old"), new_id()) is None
        assert claim(unit, keyed(user_id, key="new"), new_id()) is not None


def test_the_hash_is_of_what_is_said() -> None:
    assert hash_of(b'{"a": 1, "b": [2]}', "") == hash_of(b'{"b":[2],"a":1}', "")
    others = [b'{"a": 1}', b'{"a": "1"}', b"not json", b"", b"[1]"]
    assert len({hash_of(body, query) for body in others for query in ("", "x=1")}) == 10
    # What is stored gives no way to guess a password.
    assert hash_of(b'{"email": "a", "password": "x"}', "") == hash_of(b'{"email": "a"}', "")


def test_a_user_is_added_once(stack: WorkerServices) -> None:
    with TestClient(create_app(stack)) as client:
        admin = sign_in(stack, "root@example.org", Role.ADMIN) | {"Idempotency-Key": "k"}
        body = {"email": "new@example.org"}
        first = client.post("/api/v1/users", json=body, headers=admin)
        again = client.post("/api/v1/users", json=body, headers=admin)
        assert (first.status_code, again.json()) == (201, first.json())
        other = client.post("/api/v1/users", json={"email": "b@example.org"}, headers=admin)
        problem(other, 409, "IDEMPOTENCY_CONFLICT")
        problem(client.post("/api/v1/users", json=body, headers=admin | {"Idempotency-Key": "l"}),
                409, "WRONG_STATE")  # fmt: skip


def test_a_secret_is_made_once_and_shown_once(stack: WorkerServices) -> None:
    with TestClient(create_app(stack)) as client:
        ada = sign_in(stack, "ada@example.org") | {"Idempotency-Key": "k"}
        made = client.post("/api/v1/keys", json={"name": "x"}, headers=ada)
        again = client.post("/api/v1/keys", json={"name": "x"}, headers=ada)
        assert made.status_code == 201
        assert made.json()["id"] in problem(again, 409, "SECRET_SHOWN_BEFORE")["detail"]
        rotate = f"/api/v1/keys/{made.json()['id']}/rotate"
        ada["Idempotency-Key"] = "r"
        rotated = client.post(rotate, headers=ada)
        problem(client.post(rotate, headers=ada), 409, "SECRET_SHOWN_BEFORE")
        assert rotated.status_code == 200
        # A rotation sent twice would have closed what the first one has answered.
        stack.keys.authenticate(rotated.json()["secret"])
        assert len(stack.keys.get_all()) == 1
