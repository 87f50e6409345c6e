"""API keys: their terms, their rotation, and why one opens nothing."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from promptstack.api.http.app import create_app
from promptstack.config.settings import Settings
from promptstack.repositories.access_models import Role, Scope
from promptstack.services.access.keys import MAX_KEYS, ROTATION_SECONDS
from promptstack.services.errors import (
    InvalidInput,
    KeyExpired,
    KeyRevoked,
    NotAuthenticated,
    NotFound,
    UserDisabled,
)
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem

ADA = "ada@example.org"


def change(stack: PromptStack, statement: str, **values: object) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(statement), values)


def test_a_key_passes_on_its_terms_and_its_users_rights(stack: PromptStack) -> None:
    plain = stack.keys.authenticate(stack.keys.create(ADA, "plain"), "10.0.0.1")
    assert (plain.email, plain.role, plain.address) == (ADA, Role.USER, "10.0.0.1")
    assert plain.scopes == frozenset(Scope) - {Scope.ADMIN}
    assert plain.key_limits is None
    bound = stack.keys.issue(
        ADA,
        {
            "name": "bound",
            "scopes": ["jobs:read"],
            "providers": ["demo"],
            "models": ["gpt-*"],
            "requests_a_minute": 5,
        },
    )
    caller = stack.keys.authenticate(bound.secret)
    assert (caller.scopes, caller.requests_a_minute) == (frozenset({Scope.JOBS_READ}), 5)
    assert caller.key_limits is not None
    assert (caller.key_limits.providers, caller.key_limits.models) == (("demo",), ("gpt-*",))
    assert caller.user_id == plain.user_id
    assert bound.secret.startswith(bound.key.prefix)


def test_a_key_of_an_administrator_is_no_right_by_itself(stack: PromptStack) -> None:
    with pytest.raises(InvalidInput, match="set-role"):
        stack.keys.create(ADA, "too much", scopes=["admin"])
    key = stack.keys.create(ADA, "plain")
    change(stack, "UPDATE users SET role = 'admin'")
    admin = stack.keys.create(ADA, "admin", scopes=list(Scope))
    assert not stack.keys.authenticate(key).is_admin
    assert stack.keys.authenticate(admin).is_admin
    assert not stack.keys.authenticate(admin).is_super_admin
    change(stack, "UPDATE users SET role = 'user'")
    assert not stack.keys.authenticate(admin).is_admin


def test_a_key_says_why_it_opens_nothing(stack: PromptStack) -> None:
    key = stack.keys.create(ADA, "x", expires_at=datetime.now(UTC) + timedelta(hours=1))
    stack.keys.authenticate(key)
    for wrong in ("", "ps_", key[:-1], key + "x", key.removeprefix("ps_"), "ps_\x00"):
        with pytest.raises(NotAuthenticated) as caught:
            stack.keys.authenticate(wrong)
        assert caught.value.code == "NOT_AUTHENTICATED"
    change(stack, "UPDATE users SET disabled_at = now()")
    with pytest.raises(UserDisabled):
        stack.keys.authenticate(key)
    change(stack, "UPDATE api_keys SET expires_at = now() - interval '1 second'")
    with pytest.raises(KeyExpired):
        stack.keys.authenticate(key)
    change(stack, "UPDATE api_keys SET revoked_at = now()")
    with pytest.raises(KeyRevoked):
        stack.keys.authenticate(key)


def test_a_rotation_leaves_the_old_secret_a_day(stack: PromptStack) -> None:
    first = stack.keys.issue(ADA, {"name": "x"})
    second = stack.keys.rotate(first.key.id)
    assert second.key.id == first.key.id
    assert second.key.previous_until is not None
    left = (second.key.previous_until - datetime.now(UTC)).total_seconds()
    assert ROTATION_SECONDS - 60 < left <= ROTATION_SECONDS
    callers = [stack.keys.authenticate(each.secret) for each in (first, second)]
    assert callers[0] == callers[1]
    third = stack.keys.rotate(first.key.id)  # as by somebody who lost the second
    assert third.key.previous_until == second.key.previous_until
    for secret in (first.secret, third.secret):
        stack.keys.authenticate(secret)
    with pytest.raises(NotAuthenticated):
        stack.keys.authenticate(second.secret)
    change(stack, "UPDATE api_keys SET previous_until = now() - interval '1 second'")
    with pytest.raises(NotAuthenticated):
        stack.keys.authenticate(first.secret)
    fourth = stack.keys.rotate(first.key.id)
    for secret in (third.secret, fourth.secret):
        stack.keys.authenticate(secret)
    stack.keys.revoke(first.key.id)
    with pytest.raises(KeyRevoked):
        stack.keys.authenticate(third.secret)
    with pytest.raises(NotFound):
        stack.keys.rotate(first.key.id)


@pytest.mark.parametrize(
    "terms",
    [
        {"name": ""},
        {"name": "x" * 201},
        {"name": "a\nb"},
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["everything"]},
        {"name": "x", "providers": []},
        {"name": "x", "providers": ["a"] * 51},
        {"name": "x", "models": ["\x00"]},
        {"name": "x", "models": ["m"] * 201},
        {"name": "x", "requests_a_minute": 0},
        {"name": "x", "requests_a_minute": 1_000_001},
        {"name": "x", "requests_a_minute": True},
        {"name": "x", "expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
        {"name": "x", "password": "secret"},
    ],
)
def test_terms_out_of_their_bounds_are_refused(stack: PromptStack, terms: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        stack.keys.issue(ADA, terms)
    assert stack.keys.get_all() == []


def test_a_user_has_a_hundred_keys_at_most(stack: PromptStack) -> None:
    for number in range(MAX_KEYS):
        stack.keys.create(ADA, f"{number}")
    with pytest.raises(InvalidInput, match="Revoke one"):
        stack.keys.create(ADA, "one more")
    stack.keys.create("bob@example.org", "another's")
    stack.keys.revoke(stack.keys.get_all()[0].id)
    stack.keys.create(ADA, "one more")


def test_keys_are_found_by_id_and_by_how_they_begin(stack: PromptStack) -> None:
    issued = stack.keys.issue(ADA, {"name": "x"})
    stack.keys.create(ADA, "y")
    for given in (str(issued.key.id), issued.key.prefix, issued.secret):
        assert stack.keys.find(given) == issued.key.id
    with pytest.raises(InvalidInput):
        stack.keys.find("ps_nonesuch")


def test_another_users_key_is_none(stack: PromptStack) -> None:
    issued = stack.keys.issue(ADA, {"name": "x"})
    bob = stack.keys.authenticate(stack.keys.create("bob@example.org", "y")).user_id
    for act in (stack.keys.rotate, stack.keys.revoke):
        with pytest.raises(NotFound):
            act(issued.key.id, owner=bob)
    assert [key.name for key in stack.keys.get_page(bob).rows] == ["y"]
    stack.keys.authenticate(issued.secret)


def test_the_use_of_a_key_is_noted_once_a_minute(stack: PromptStack) -> None:
    key = stack.keys.create(ADA, "x")
    assert stack.keys.get_all()[0].last_used_at is None
    stack.keys.authenticate(key)
    noted = stack.keys.get_all()[0].last_used_at
    assert noted is not None
    stack.keys.authenticate(key)
    assert stack.keys.get_all()[0].last_used_at == noted
    change(stack, "UPDATE api_keys SET last_used_at = now() - interval '2 minutes'")
    stack.keys.authenticate(key)
    again = stack.keys.get_all()[0].last_used_at
    assert again is not None
    assert again >= noted


def test_what_is_done_with_keys_is_recorded_without_their_secrets(stack: PromptStack) -> None:
    first = stack.keys.issue(ADA, {"name": "laptop", "models": ["gpt-*"]})
    second = stack.keys.rotate(first.key.id)
    stack.keys.revoke(first.key.id)
    entries = stack.audit.get_many(object_id=str(first.key.id))
    assert [entry.action for entry in entries] == ["key.revoked", "key.rotated", "key.created"]
    assert entries[-1].detail["models"] == ["gpt-*"]
    assert entries[-1].detail["key_name"] == "laptop"
    told = repr(entries)
    assert first.secret not in told
    assert second.secret not in told


ASKS: list[tuple[str, dict[str, Any]]] = [
    ("generations", {"prompt": "x", "provider": "demo"}),
    ("generations", {"prompt": "x"}),
    (
        "generations",
        {"prompt": "x", "provider": "allowed", "fallbacks": [{"provider": "demo"}]},
    ),
    ("embeddings", {"text": "x", "provider": "local"}),
    ("jobs/bulk", {"jobs": [{"prompt": "x", "provider": "demo"}]}),
    ("jobs/bulk", {"jobs": [{"text": "x", "provider": "local"}]}),
    ("runs/generations", {"items": ["x"], "provider": "demo"}),
    ("runs/embeddings", {"items": ["x"], "provider": "local"}),
]


def test_a_key_asks_only_the_providers_and_models_of_its_terms(
    settings: Settings, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    models = tmp_path / "models.toml"
    models.write_text(
        '[[providers]]\nname = "allowed"\nwire = "openai"\nbase_url = "http://localhost:1/v1"\n'
        'generation_model = "gpt-5-mini"\n'
    )
    with WorkerServices.open(settings.model_copy(update={"models_file": models})) as stack:
        by_provider = stack.keys.create(ADA, "x", providers=["allowed"])
        by_model = stack.keys.create(ADA, "y", models=["gpt-5-*"])
        free = stack.keys.create(ADA, "z")
        with TestClient(create_app(stack)) as client:
            for path, body in ASKS:
                for key in (by_provider, by_model):
                    with subtests.test(f"{path} {body}"):
                        response = client.post(
                            f"/api/v1/{path}", json=body, headers={"X-API-Key": key}
                        )
                        told = problem(response, 403, "NOT_PERMITTED")["detail"]
                        assert "allowed" in told or "gpt-5-*" in told
                answer = client.post(f"/api/v1/{path}", json=body, headers={"X-API-Key": free})
                assert answer.status_code == 202, answer.text
            for key in (by_provider, by_model):
                answer = client.post(
                    "/api/v1/generations",
                    json={"prompt": "x", "provider": "allowed"},
                    headers={"X-API-Key": key},
                )
                assert answer.status_code == 202, answer.text
        assert len(stack.jobs.get_many()) == 6 + 2
