"""Every route, asked by everybody who may not: the table of permissions holds for each."""

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import text

from promptstack.api.cli.lazy import Command, Group
from promptstack.api.cli.main import COMMANDS
from promptstack.api.http.app import create_app
from promptstack.api.http.openai.errors import CODES, CODES_OF_STATUSES
from promptstack.api.http.openai.ids import wire_id
from promptstack.api.http.route import ProtectedRoute
from promptstack.api.permissions import (
    PERMISSIONS,
    RANKS,
    Whose,
    permission_of_command,
)
from promptstack.repositories.access_models import Role, Scope
from promptstack.repositories.jobs.records import JobFilter
from promptstack.services.access.caller import Caller
from promptstack.services.access.sessions import Origin
from promptstack.services.errors import NotPermitted, WrongState
from promptstack.tasks.worker_services import WorkerServices
from tests.batches import batch_of, chat
from tests.http import problem

ROUTES = [(each, route) for each in PERMISSIONS for route in each.routes]
NAMES = [route for _, route in ROUTES]
BODIES: dict[str, Any] = {
    "PATCH /users/{user_id}": {"name": "Eve"},
    "PATCH /webhooks/{webhook_id}": {"description": "x"},
    "PUT /budgets/keys/{key_id}": {"day": 1},
    "PATCH /collections/{collection_id}": {"name": "eves"},
    "PUT /collections/{collection_id}/documents": {"text": "x", "source": "x"},
}
"""Of routes that say what is wrong with a body before they look for the object."""
ENDS_SESSIONS = {"POST /auth/logout", "POST /auth/logout-everywhere"}
FORBIDDEN_TO_OTHERS = {"GET /users/{user_id}", "PATCH /users/{user_id}"}
"""They tell another user from none, as the product's users asked."""
OUTSIDE = {"GET /healthz", "GET /docs", "GET /redoc", "GET /openapi.json"}
"""Below no prefix: whether the server is there, and what it can do."""


def refusal(route: str, response: Response, status: int, code: str) -> str:
    """What a refusal says, checked for its form and code, of which other APIs have their own."""
    if "/anthropic/" in route:
        assert (response.status_code, response.json()["type"]) == (status, "error")
        said: str = response.json()["error"]["message"]
        return said
    if "/openai/" not in route:
        detail: str = problem(response, status, code)["detail"]
        return detail
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["code"] == (CODES_OF_STATUSES.get(status) or CODES.get(code, code.lower()))
    message: str = error["message"]
    return message


def routes(app: FastAPI) -> Iterator[tuple[str, APIRoute | None]]:
    """All routes of the application, by method and path below the API's prefix."""
    for route in app.routes:
        router: APIRouter | None = getattr(route, "original_router", None)
        for one in [route] if router is None else router.routes:
            methods = getattr(one, "methods", None) or set()
            for method in methods - {"HEAD"}:
                yield (
                    f"{method} {getattr(one, 'path', '')}",
                    one if isinstance(one, APIRoute) else None,
                )


def test_the_table_has_each_route_once_and_no_other(stack: WorkerServices) -> None:
    app = create_app(stack)
    found = dict(routes(app))
    assert set(found) - OUTSIDE - {"GET /docs/oauth2-redirect"} == set(NAMES)
    assert len(NAMES) == len(set(NAMES))
    for name in NAMES:
        assert isinstance(found[name], ProtectedRoute), name


def test_a_route_that_the_table_does_not_know_cannot_be_made() -> None:
    router = APIRouter(route_class=ProtectedRoute)
    with pytest.raises(LookupError, match=r"GET /unknown must be in one row"):
        router.get("/unknown")(lambda: None)
    with pytest.raises(LookupError, match="make two routes"):
        router.api_route("/operations", methods=["GET", "POST"])(lambda: None)


def test_the_table_has_each_command_once_and_no_other() -> None:
    commands = [name for each in PERMISSIONS for name in each.commands]
    assert sorted(commands) == sorted(_commands(COMMANDS))
    for name in commands:
        assert name in permission_of_command(name).commands


def _commands(table: dict[str, Command | Group], before: str = "") -> Iterator[str]:
    for name, one in table.items():
        if isinstance(one, Group):
            yield from _commands(dict(one.commands), f"{before}{name} ")
        else:
            yield f"{before}{name}"


class World:
    """An application with things of Ada's, and whoever asks for them."""

    def __init__(self, stack: WorkerServices, client: TestClient) -> None:
        self.stack = stack
        self._client = client
        self.ada = stack.keys.issue("ada@example.org", {"name": "ada's"})
        user_id = stack.keys.authenticate(self.ada.secret).user_id
        job = stack.jobs.enqueue_generation("x", user_id=user_id)
        run = stack.runs.embed(["x"], provider="local", user_id=user_id)
        self._ids: dict[str, object] = {
            "job_id": job.id,
            "run_id": run.id,
            "key_id": self.ada.key.id,
            "collection_id": stack.collections.create("adas", user_id=user_id).id,
            "document_id": stack.documents.put(
                "x", source="x", embed=False, user_id=user_id
            ).document.id,
        }
        webhook = stack.webhooks.create("https://example.org/", user_id=user_id).webhook
        self._ids["webhook_id"] = webhook.id
        self._ids["delivery_id"] = stack.webhook_deliveries.test(webhook.id).id
        cancel = stack.operations.start("cancel", JobFilter(tag="none"), user_id=user_id)
        file = stack.files.create(BytesIO(b"{}"), filename="x", purpose="batch", user_id=user_id)
        self._ids["file_id"] = wire_id("file-", file.id)
        self._ids |= {"user_id": user_id, "operation_id": cancel.id}
        response = stack.responses.create({"model": "demo/demo-1"}, "x", user_id=user_id)
        self._ids["response_id"] = wire_id("resp_", response.id)
        self._ids |= {"name": "some_flag", "format": "jsonl", "model_id": "demo-1"}
        batch = batch_of(stack, user_id, [chat("a", "x")])
        self._ids["batch_id"] = wire_id("batch_", batch.id)
        self._ids["message_batch_id"] = wire_id("msgbatch_", batch.id)

    def ask(self, route: str, credential: str | None) -> Response:
        """Send a request of a route, for Ada's object where it names one."""
        method, path = route.split()
        headers = {} if credential is None else {"Authorization": f"Bearer {credential}"}
        if path.endswith("/events"):
            self._end()
        below = "" if path.startswith(("/openai/", "/anthropic/")) else "/api/v1"
        url = below + path.replace(":path}", "}").format(**self._ids)
        body = BODIES.get(route)
        return self._client.request(method, url, headers=headers, json=body)

    def _end(self) -> None:
        """End her job and her run: their events go on for as long as they do."""
        with suppress(WrongState):
            self.stack.jobs.cancel(str(self._ids["job_id"]))
        with suppress(WrongState):
            self.stack.runs.cancel(str(self._ids["run_id"]))

    def key(self, email: str, role: Role = Role.USER, but: Scope | None = None) -> str:
        """A key of a user with this role that has all scopes but one."""
        self._set_role(email, Role.SUPER_ADMIN)  # else it could not have the scope admin
        key = self.stack.keys.create(email, "x", scopes=[each for each in Scope if each != but])
        self._set_role(email, role)
        return key

    def token(self, email: str, role: Role = Role.USER) -> str:
        """The access token of a user with this role."""
        self._set_role(email, role)
        with self.stack.ledger.transaction() as unit:
            user = unit.users.get_by_email(email)
            assert user is not None
            return self.stack.sessions.open_tokens(unit, user, Origin()).access_token

    def _set_role(self, email: str, role: Role) -> None:
        with self.stack.ledger.transaction() as unit:
            user = unit.users.get_by_email(email) or unit.users.create(email=email)
            unit.users.update(user, role=role)

    def change(self, statement: str) -> None:
        with self.stack.ledger.transaction() as unit:
            unit.session.execute(text(statement))


@pytest.fixture
def world(stack: WorkerServices) -> Iterator[World]:
    with TestClient(create_app(stack)) as client:
        yield World(stack, client)


def test_no_route_answers_who_has_no_valid_credential(
    world: World, subtests: pytest.Subtests
) -> None:
    expired, revoked, disabled = (world.key(f"{name}@example.org") for name in "abc")
    ended, outdated = (world.token(f"{name}@example.org") for name in "de")
    world.change(
        "UPDATE api_keys SET expires_at = now() WHERE user_id = "
        "(SELECT id FROM users WHERE email = 'a@example.org')"
    )
    world.change(
        "UPDATE api_keys SET revoked_at = now() WHERE user_id = "
        "(SELECT id FROM users WHERE email = 'b@example.org')"
    )
    world.change("UPDATE users SET disabled_at = now() WHERE email = 'c@example.org'")
    world.change(
        "UPDATE sessions SET revoked_at = now() WHERE user_id = "
        "(SELECT id FROM users WHERE email = 'd@example.org')"
    )
    world.change(
        "UPDATE sessions SET expires_at = now() WHERE user_id = "
        "(SELECT id FROM users WHERE email = 'e@example.org')"
    )
    for permission, route in ROUTES:
        if permission.is_public:
            continue
        for credential, code in (
            (None, "NOT_AUTHENTICATED"),
            ("ps_nonesuch", "NOT_AUTHENTICATED"),
            (expired, "KEY_EXPIRED"),
            (revoked, "KEY_REVOKED"),
            (disabled, "USER_DISABLED"),
            (ended, "SESSION_REVOKED"),
            (outdated, "SESSION_EXPIRED"),
        ):
            with subtests.test(f"{route} {code}"):
                refusal(route, world.ask(route, credential), 401, code)


def test_each_route_needs_its_scope_of_a_key(world: World, subtests: pytest.Subtests) -> None:
    lacking = {scope: world.key("root@example.org", Role.SUPER_ADMIN, scope) for scope in Scope}
    for permission, route in ROUTES:
        if permission.scope is None and not permission.needs_sign_in:
            continue
        with subtests.test(route):
            key = lacking[permission.scope or Scope.JOBS_READ]
            told = refusal(route, world.ask(route, key), 403, "NOT_PERMITTED")
            assert permission.needs_sign_in or str(permission.scope) in told


@pytest.mark.parametrize("role", Role)
def test_each_route_needs_its_role(world: World, role: Role, subtests: pytest.Subtests) -> None:
    key, token = world.key("bob@example.org", role), world.token("bob@example.org", role)
    for permission, route in ROUTES:
        is_allowed = RANKS[role] >= RANKS[permission.role]
        for name, credential in (("key", key), ("token", token)):
            if (name == "key" and permission.needs_sign_in) or route in ENDS_SESSIONS:
                continue
            with subtests.test(f"{route} by a {name}"):
                response = world.ask(route, credential)
                if not is_allowed:
                    refusal(route, response, 403, "NOT_PERMITTED")
                elif route not in FORBIDDEN_TO_OTHERS:
                    assert response.status_code not in {401, 403}, response.text


def test_what_belongs_to_another_user_is_not_there(world: World, subtests: pytest.Subtests) -> None:
    key, token = world.key("eve@example.org"), world.token("eve@example.org")
    for permission, route in ROUTES:
        if permission.whose not in {Whose.OWN, Whose.ONLY_OWN} or "{" not in route:
            continue
        for name, credential in (("key", key), ("token", token)):
            if name == "key" and permission.needs_sign_in:
                continue
            with subtests.test(f"{route} by a {name}"):
                if route in FORBIDDEN_TO_OTHERS:
                    problem(world.ask(route, credential), 403, "NOT_PERMITTED")
                else:
                    refusal(route, world.ask(route, credential), 404, "NOT_FOUND")
    for permission, route in ROUTES:
        is_list = route.startswith("GET ") and "{" not in route and "/auth/me" not in route
        if is_list and permission.whose is Whose.OWN:
            with subtests.test(f"{route} of all"):
                problem(world.ask(f"{route}?owner=all", token), 403, "NOT_PERMITTED")


def test_a_row_for_administrators_needs_the_scope_too() -> None:
    for each in PERMISSIONS:
        if each.routes and each.role is not Role.USER:
            assert each.scope is Scope.ADMIN or each.needs_sign_in, each.action
            assert each.whose is Whose.ALL, each.action
        assert not (each.is_public and (each.scope or each.role is not Role.USER)), each.action


@pytest.mark.parametrize("role", Role)
def test_the_check_itself(role: Role, stack: WorkerServices) -> None:
    user = stack.keys.authenticate(stack.keys.create("ada@example.org", "x")).user_id
    for permission, _ in ROUTES:
        caller = Caller(user_id=user, email="ada@example.org", role=role)
        if RANKS[role] >= RANKS[permission.role]:
            permission.check(caller)
        else:
            with pytest.raises(NotPermitted, match=permission.role):
                permission.check(caller)
