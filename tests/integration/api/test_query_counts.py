"""The queries of every list: as many for 50 rows as for one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar
from uuid import UUID

import pytest
from fastapi.testclient import TestClient
from psycopg2.extensions import cursor
from pydantic import JsonValue
from sqlalchemy import event

from promptstack.api.http.app import create_app
from promptstack.config.settings import Settings, load_settings
from promptstack.repositories.access_models import Role
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.pages import Page
from promptstack.services.access.users import UserView
from promptstack.services.audit.actor import Actor
from promptstack.services.budgets.service import Scope, Subject
from promptstack.services.flags.rules import ON
from promptstack.services.jobs.views import JobView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.runs import prompts, work

PREFIX = "/api/v1"
FEW, MANY = 1, 50
FAILING: dict[str, JsonValue] = {"fail_times": 1, "fail_with": "invalid"}


class CountingCursor(cursor):
    """Counts all that is sent to PostgreSQL, by SQLAlchemy or past it."""

    statements: ClassVar[list[str]] = []

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - the driver's name
        self.statements.append(str(query))
        super().execute(query, vars)

    def executemany(self, query: Any, vars_list: Any) -> None:
        self.statements.extend(str(query) for _ in vars_list)
        super().executemany(query, vars_list)


@dataclass
class World:
    """A ledger with so many rows of everything that a list shows."""

    stack: WorkerServices
    client: TestClient
    user_id: UUID
    email: str
    rows: int = 0
    places: dict[str, str] = field(default_factory=dict)
    """Values of the places in paths."""

    def grow(self, rows: int) -> None:
        """Add rows of each kind until there are so many."""
        for number in range(self.rows, rows):
            job = self.stack.jobs.enqueue_generation("Hello.", user_id=self.user_id)
            execute(self.stack, job.id)
            run = self.stack.runs.generate([f"Run {number}"], user_id=self.user_id)
            self.stack.runs.cancel(run.id)
            self.stack.documents.put(
                "A text.", source=f"{number}", embed=False, user_id=self.user_id
            )
            self.stack.collections.create(f"collection {number}", user_id=self.user_id)
            other = f"user-{number}@example.org"
            self.stack.keys.create(self.email, f"key {number}")
            self.stack.keys.create(other, "theirs")
            self.stack.flag_service.set(f"flag_{number}", ON, by=Actor.command_line())
            newest = self.stack.keys.get_page(self.user_id).rows[0]
            self.stack.budgets.set(Subject(Scope.KEY, newest.id), {"total": 1})
            self.stack.operations.start("cancel", JobFilter(tag="none"), user_id=self.user_id)
            self.stack.notifications.send(
                user_id=self.user_id,
                subject=f"News {number}",
                message="None.",
                actor=Actor.command_line(),
            )
        self._add_webhooks(rows)
        done = self.stack.runs.generate(prompts(rows), user_id=self.user_id)
        failed = self.stack.runs.generate(
            prompts(rows), user_id=self.user_id, options=FAILING, max_retries=0
        )
        work(self.stack, done.id)
        work(self.stack, failed.id)
        self.places |= {"done": str(done.id), "failed": str(failed.id)}
        self.rows = rows

    def _add_webhooks(self, rows: int) -> None:
        for number in range(self.rows, rows):
            made = self.stack.webhooks.create(
                f"https://example.org/{number}", ["run.expired"], user_id=self.user_id
            )
            self.places["webhook"] = self.places.get("webhook", str(made.webhook.id))
            self.stack.webhook_deliveries.test(self.places["webhook"])

    def ask(self, route: str) -> int:
        """How many rows a list has."""
        path, name = LISTS[route]
        url = PREFIX + path.format(**self.places)
        answer = self.client.get(url, headers={"Cache-Control": "no-cache"})
        assert answer.status_code == 200, answer.text
        return len(answer.json()[name] if name else answer.json())

    def count(self, route: str) -> tuple[int, list[str]]:
        """The rows of a list, and the statements that it took."""
        self.ask(route)  # who the caller is, and what is on, is then known
        CountingCursor.statements.clear()
        rows = self.ask(route)
        return rows, list(CountingCursor.statements)


LISTS: Mapping[str, tuple[str, str]] = {
    "GET /jobs": ("/jobs?limit=100", "jobs"),
    "GET /operations": ("/operations?limit=100", "operations"),
    "GET /runs": ("/runs?limit=100", "runs"),
    "GET /runs/{run_id}/results": ("/runs/{done}/results?limit=49", "results"),
    "GET /runs/{run_id}/failures": ("/runs/{failed}/failures?limit=49", "failures"),
    "GET /usage": ("/usage?by=user&by=model", ""),
    "GET /usage/calls": ("/usage/calls?limit=100", "calls"),
    "GET /collections": ("/collections?limit=100", "collections"),
    "GET /collections/{collection_id}/documents": (
        "/collections/default/documents?limit=100",
        "documents",
    ),
    "GET /keys": ("/keys?limit=100", "keys"),
    "GET /budgets": ("/budgets?limit=100", "budgets"),
    "GET /users": ("/users?limit=100", "users"),
    "GET /audit": ("/audit?limit=100", "entries"),
    "GET /flags": ("/flags", "flags"),
    "GET /features": ("/features", "features"),
    "GET /webhooks": ("/webhooks?limit=100", "webhooks"),
    "GET /webhooks/deliveries": ("/webhooks/deliveries?limit=100", "deliveries"),
    "GET /webhooks/{webhook_id}/deliveries": (
        "/webhooks/{webhook}/deliveries?limit=100",
        "deliveries",
    ),
    "GET /notifications": ("/notifications?limit=100", "notifications"),
}
"""How each list is asked for, and where its rows are. Items of a run are read 50 at a time, and one
more than the page shows."""
ONE_ROW = {
    "GET /auth/me",
    "GET /auth/me/events",
    "GET /flags/{name}",
    "GET /jobs/{job_id}",
    "GET /operations/{operation_id}",
    "GET /overview",
    "GET /runs/{run_id}",
    "GET /webhooks/{webhook_id}",
}
"""What has a list in one row, or one that no table has."""
SUMS = {"GET /usage"}
"""Whose rows are sums, of which more calls don't make more."""


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With a mail server: without one no notification is accepted. None is sent here."""
    monkeypatch.setenv("SMTP_URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("MAIL_FROM", "stack@example.org")
    monkeypatch.setenv("WEBHOOK_ENDPOINTS", "1000")
    return load_settings(_env_file=None)


@pytest.fixture
def world(
    stack: WorkerServices,
    test_user: UserView,
    auth_client: TestClient,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    # Asked by the clock and not by the list.
    monkeypatch.setattr("promptstack.services.flags.flags.REREAD_SECONDS", float("inf"))
    monkeypatch.setattr("promptstack.repositories.pooled_connections.FRESH_SECONDS", float("inf"))
    stack.users.change(test_user.id, role=Role.ADMIN)
    stack.ledger.engine.dispose()
    event.listen(stack.ledger.engine, "connect", _count)
    return World(stack, auth_client, test_user.id, test_user.email)


def _count(connection: Any, _: object) -> None:
    connection.cursor_factory = CountingCursor


def list_routes(stack: WorkerServices) -> set[str]:
    """The routes of the application that answer with a list, or with something that has one."""
    described = create_app(stack).openapi()
    found = set()
    for path, methods in described["paths"].items():
        if "get" in methods:
            contents = methods["get"]["responses"]["200"]["content"]
            if "application/json" not in contents:
                continue  # a file
            answer = contents["application/json"]["schema"]
            model = described["components"]["schemas"].get(
                answer.get("$ref", "").rpartition("/")[2]
            )
            fields = (model or {}).get("properties", {}).values()
            if any("array" in str(one) for one in (answer, *fields)):
                found.add(f"GET {path.removeprefix(PREFIX)}")
    return found


def test_every_list_is_known_here(stack: WorkerServices) -> None:
    assert list_routes(stack) == set(LISTS) | ONE_ROW


def test_no_list_asks_more_for_more_rows(world: World, subtests: pytest.Subtests) -> None:
    world.grow(FEW)
    few = {route: world.count(route) for route in LISTS}
    world.grow(MANY)
    for route in LISTS:
        with subtests.test(route):
            rows, statements = few[route]
            more_rows, more_statements = world.count(route)
            assert statements
            assert more_rows >= (1 if route in SUMS else MANY - 1)
            assert rows < more_rows or route in SUMS
            assert len(more_statements) <= len(statements), more_statements


def test_a_list_that_asks_for_each_row_is_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without this, a count that sees nothing would pass."""
    get_page = world.stack.jobs.get_page

    def one_by_one(*which: Any) -> Page[JobView]:
        return get_page(*which).of(lambda job: world.stack.jobs.get(job.id))

    monkeypatch.setattr(world.stack.jobs, "get_page", one_by_one)
    counts = []
    for _ in range(2):
        world.stack.jobs.enqueue_many([{"prompt": "Hi.", "user_id": world.user_id}] * 3)
        counts.append(world.count("GET /jobs"))
    assert [rows for rows, _ in counts] == [3, 6]
    assert len(counts[1][1]) > len(counts[0][1])
