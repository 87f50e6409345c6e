"""Clients of the HTTP API, and what is wrong by it."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from promptstack.api.http.app import create_app
from promptstack.api.http.server import Server, make_server
from promptstack.repositories.access_models import Role, Scope
from promptstack.services.access.sessions import Origin
from promptstack.tasks.composition import PromptStack
from tests.processes import wait_until


@contextmanager
def serve(
    stack: PromptStack, email: str = "ada@example.org", *, is_admin: bool = False
) -> Iterator[TestClient]:
    """A client with a key of this user, who may become an administrator."""
    key = make_admin_key(stack, email) if is_admin else stack.keys.create(email, "Test")
    with TestClient(create_app(stack), headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def make_admin_key(stack: PromptStack, email: str) -> str:
    """A key of an administrator, who is added, or gets the role."""
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(email) or unit.users.create(email=email)
        unit.users.update(user, role=Role.ADMIN)
    return stack.keys.create(email, "Test", scopes=list(Scope))


def sign_in(stack: PromptStack, email: str, role: Role = Role.USER) -> dict[str, str]:
    """The headers of a user who has signed in, is added or gets the role."""
    with stack.ledger.transaction() as unit:
        user = unit.users.get_by_email(email) or unit.users.create(email=email)
        unit.users.update(user, role=role)
        token = stack.sessions.open_tokens(unit, user, Origin()).access_token
    return {"Authorization": f"Bearer {token}"}


def problem(response: Response, status: int, code: str) -> dict[str, Any]:
    """The problem in a response, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) - {"errors", "field"} == {"type", "title", "status", "detail", "code"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    return body


@contextmanager
def live_server(stack: PromptStack, port: int = 0) -> Iterator[tuple[Server, str]]:
    """A server in a thread, on a port of this machine: what it sends is read as it is sent."""
    server = make_server(stack)
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_until(lambda: server.started, "the server")
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
