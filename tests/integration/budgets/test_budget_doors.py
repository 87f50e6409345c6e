"""Budgets by their doors: the command line and HTTP, who may set them, and what is recorded."""

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.api.http.app import create_app
from promptstack.repositories.access_models import Role
from promptstack.services.access.sessions import Origin
from promptstack.services.budgets.service import OF_DEPLOYMENT, BudgetService
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.http import problem
from tests.jobs import run

runner = CliRunner()


def command(*arguments: str) -> Any:
    """What a command prints for programs."""
    done = runner.invoke(build(), [*arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def caps_of(budget: dict[str, Any]) -> dict[str, Decimal]:
    given = [cap for cap in budget["caps"] if cap["cap_usd"] is not None]
    return {cap["window"]: Decimal(cap["cap_usd"]) for cap in given}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with TestClient(create_app(stack)) as client:
        yield client


@pytest.fixture
def bearer(stack: WorkerServices) -> Callable[..., dict[str, str]]:
    """Headers of a user who has signed in."""

    def sign_in(email: str, role: Role = Role.USER) -> dict[str, str]:
        with stack.ledger.transaction() as unit:
            user = unit.users.get_by_email(email) or unit.users.create(email=email)
            unit.users.update(user, role=role)
            token = stack.sessions.open_tokens(unit, user, Origin()).access_token
        return {"Authorization": f"Bearer {token}"}

    return sign_in


def test_a_key_is_made_with_caps_and_listed_with_what_it_has_spent(stack: WorkerServices) -> None:
    made = command("keys", "create", "--max-usd-day", "1.50", "--max-usd-total", "$20")
    (budget,) = command("budgets", "show")["items"]
    assert (budget["scope"], budget["id"]) == ("key", made["id"])
    assert caps_of(budget) == {"day": Decimal("1.5"), "total": 20}
    (listed,) = command("keys", "list")["items"]
    assert listed["budget"]["caps"] == budget["caps"]
    shown = runner.invoke(build(), ["budgets", "show"], env={"COLUMNS": "200"})
    assert "$0.00 of $1.50" in shown.stdout
    command("keys", "create", "--name", "free")
    assert command("keys", "list")["items"][1]["budget"] is None


def test_caps_are_set_changed_and_taken_away(stack: WorkerServices) -> None:
    stack.users.create("ada@example.org")
    set_ = ("budgets", "set", "--user", "ada@example.org")
    assert caps_of(command(*set_, "--day", "1", "--month", "2")["budget"]) == {"day": 1, "month": 2}
    assert caps_of(command(*set_, "--day", "none", "--total", "0")["budget"]) == {
        "month": 2,
        "total": 0,
    }
    assert command(*set_, "--month", "none", "--total", "none")["budget"] is None
    command("budgets", "set", "--deployment", "--day", "100")
    command(*set_, "--day", "1")
    assert [one["scope"] for one in command("budgets", "show")["items"]] == ["deployment", "user"]
    mine = command("budgets", "show", "--user", "ada@example.org")["items"]
    assert [one["name"] for one in mine] == ["ada@example.org"]
    with stack.ledger.transaction() as unit:
        entries = [one for one in unit.audit.get_many() if one.action == "budget.changed"]
    assert [one.object_id for one in entries].count("deployment") == 1
    assert {"scope": "user", "day_usd": None, "forever_usd": "0"} in [one.detail for one in entries]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--day", "1"],
        ["--deployment"],
        ["--deployment", "--user", "a@b.c", "--day", "1"],
        ["--deployment", "--day", "much"],
        ["--deployment", "--day", "-1"],
        ["--deployment", "--day", "1e12"],
        ["--deployment", "--day", "1e-30"],
        ["--user", "nobody@example.org", "--day", "1"],
        ["--key", "ffff", "--day", "1"],
    ],
)
def test_a_wrong_cap_is_refused_and_nothing_is_set(
    stack: WorkerServices, arguments: list[str]
) -> None:
    assert runner.invoke(build(), ["budgets", "set", *arguments]).exit_code != 0
    assert stack.budgets.get_all() == []


def test_everybody_sees_their_own_and_administrators_all(
    stack: WorkerServices, client: TestClient, bearer: Callable[..., dict[str, str]]
) -> None:
    key = stack.keys.issue("ada@example.org", {"name": "ada's"})
    eve = bearer("eve@example.org")
    root = bearer("root@example.org", Role.SUPER_ADMIN)
    ada = stack.keys.authenticate(key.secret).user_id
    put = "/api/v1/budgets"
    for address in (f"keys/{key.key.id}", f"users/{ada}", "deployment"):
        response = client.put(f"{put}/{address}", json={"month": "12.5"}, headers=root)
        assert response.status_code == 200, response.text
    mine = {"Authorization": f"Bearer {key.secret}"}
    seen = client.get("/api/v1/budgets", headers=mine).json()["budgets"]
    assert {one["scope"] for one in seen} == {"key", "user"}
    assert client.get("/api/v1/budgets", headers=eve).json()["budgets"] == []
    everybodys = client.get("/api/v1/budgets?owner=all", headers=root).json()["budgets"]
    assert sorted(one["scope"] for one in everybodys) == ["deployment", "key", "user"]
    of_ada = client.get("/api/v1/budgets?owner=ada@example.org", headers=root).json()["budgets"]
    assert of_ada == seen
    problem(client.get("/api/v1/budgets?owner=all", headers=eve), 403, "NOT_PERMITTED")
    paged: list[dict[str, Any]] = []
    after: str | None = ""
    while after is not None:
        query = f"owner=all&limit=1{after and f'&after={after}'}"
        page = client.get(f"/api/v1/budgets?{query}", headers=root).json()
        assert len(page["budgets"]) == 1
        paged, after = paged + page["budgets"], page["after"]
    assert paged == everybodys
    problem(client.get("/api/v1/budgets?limit=101", headers=root), 422, "INVALID_INPUT")


def test_who_may_set_which_cap(
    stack: WorkerServices, client: TestClient, bearer: Callable[..., dict[str, str]]
) -> None:
    key = stack.keys.issue("ada@example.org", {"name": "ada's"})
    ada = stack.keys.authenticate(key.secret).user_id
    address = f"/api/v1/budgets/keys/{key.key.id}"
    by_key = {"Authorization": f"Bearer {key.secret}"}
    problem(client.put(address, json={"day": 5}, headers=by_key), 403, "NOT_PERMITTED")
    eve = bearer("eve@example.org")
    problem(client.put(address, json={"day": 5}, headers=eve), 404, "NOT_FOUND")
    changed = client.put(address, json={"day": 5}, headers=bearer("ada@example.org")).json()
    assert caps_of(changed["budget"]) == {"day": 5}
    of_user, of_all = f"/api/v1/budgets/users/{ada}", "/api/v1/budgets/deployment"
    user, admin = bearer("ada@example.org"), bearer("admin@example.org", Role.ADMIN)
    problem(client.put(of_user, json={"day": 5}, headers=user), 403, "NOT_PERMITTED")
    assert client.put(of_user, json={"day": 5}, headers=admin).status_code == 200
    problem(client.put(of_all, json={"day": 5}, headers=admin), 403, "NOT_PERMITTED")
    gone = client.put(address, json={"day": None}, headers=bearer("ada@example.org"))
    assert gone.json() == {"budget": None}


def test_an_administrator_limits_no_administrator(
    stack: WorkerServices, client: TestClient, bearer: Callable[..., dict[str, str]]
) -> None:
    admin = bearer("admin@example.org", Role.ADMIN)
    root = bearer("root@example.org", Role.SUPER_ADMIN)
    keys = {
        name: stack.keys.issue(f"{name}@example.org", {"name": "x"}).key
        for name in ("ada", "other", "root", "admin")
    }
    bearer("other@example.org", Role.ADMIN)
    with stack.ledger.transaction() as unit:
        users = {one.email.split("@")[0]: one.id for one in unit.users.get_many()}
    for name in ("other", "root"):
        address = f"/api/v1/budgets/keys/{keys[name].id}"
        problem(client.put(address, json={"day": 0}, headers=admin), 403, "NOT_PERMITTED")
        address = f"/api/v1/keys/{keys[name].id}/revoke"
        problem(client.post(address, headers=admin), 403, "NOT_PERMITTED")
    for name in ("other", "root", "admin"):
        # Their own, too: a cap that one can lift oneself is none.
        address = f"/api/v1/budgets/users/{users[name]}"
        problem(client.put(address, json={"day": None}, headers=admin), 403, "NOT_PERMITTED")
        assert client.put(address, json={"day": 1}, headers=root).status_code == 200
    for name in ("ada", "admin"):
        address = f"/api/v1/budgets/keys/{keys[name].id}"
        assert client.put(address, json={"day": 1}, headers=admin).status_code == 200
        address = f"/api/v1/keys/{keys[name].id}/revoke"
        assert client.post(address, headers=admin).status_code == 200
    with stack.ledger.transaction() as unit:
        revoked = {one.id for one in unit.api_keys.get_all(None) if one.revoked_at}
    assert revoked == {keys["ada"].id, keys["admin"].id}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"day": -1},
        {"day": "NaN"},
        {"day": 1e-30},
        {"day": "0.00000000001"},
        {"day": "\u0661"},
        {"total": 100_000_000},
        {"week": 1},
        {"day": [1]},
    ],
)
def test_a_cap_out_of_bounds_is_refused(
    stack: WorkerServices,
    client: TestClient,
    bearer: Callable[..., dict[str, str]],
    body: dict[str, Any],
) -> None:
    root = bearer("root@example.org", Role.SUPER_ADMIN)
    problem(client.put("/api/v1/budgets/deployment", json=body, headers=root), 422, "INVALID_INPUT")
    assert stack.budgets.get_all() == []


def test_jobs_and_runs_of_a_key_count_for_it(stack: WorkerServices, client: TestClient) -> None:
    employ(stack, FakeProvider())
    key = stack.keys.issue("ada@example.org", {"name": "ada's"})
    mine = {"Authorization": f"Bearer {key.secret}"}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("generations", {"prompt": "x"}),
        ("embeddings", {"text": "x", "source": "x.txt"}),
        ("jobs/bulk", {"jobs": [{"prompt": "y"}, {"text": "y", "source": "y.txt"}]}),
        ("runs/embeddings", {"items": ["x"]}),
        ("runs/generations", {"items": ["x"]}),
    ]
    for address, body in asked:
        named = body if "jobs" in body else {**body, "provider": "fake"}
        for one in named.get("jobs", []):
            one["provider"] = "fake"
        assert client.post(f"/api/v1/{address}", json=named, headers=mine).status_code == 202
    with stack.ledger.transaction() as unit:
        jobs = unit.jobs.get_many()
        runs = unit.runs.get_many()
    assert len(runs) == 2
    assert {one.api_key_id for one in jobs} == {one.api_key_id for one in runs} == {key.key.id}
    assert run(stack, stack.jobs.get(jobs[0].id)).error == ""
    with stack.ledger.transaction() as unit:
        assert {one.api_key_id for one in unit.attempts.get_many()} == {key.key.id}


def test_a_cap_is_set_though_the_process_that_began_died(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Died(Exception):
        pass

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(BudgetService, "_wait_for_calls", die)
        with pytest.raises(Died):
            stack.budgets.set(OF_DEPLOYMENT, {"day": 1})
    assert stack.budgets.get_all() == []
    with stack.ledger.transaction() as unit:
        (left,) = unit.budgets.get_all(subjects=[OF_DEPLOYMENT.row])
    assert left.caps == {}
    set_ = stack.budgets.set(OF_DEPLOYMENT, {"day": 1})
    assert set_ is not None
    assert stack.budgets.set(OF_DEPLOYMENT, {"day": None}) is None
    assert stack.budgets.get_all() == []
