"""Clients of the HTTP API, and what is wrong by it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

from promptstack.api.http.app import create_app
from promptstack.tasks.composition import PromptStack


@contextmanager
def serve(stack: PromptStack, email: str = "ada@example.org", **user: bool) -> Iterator[TestClient]:
    """A client with a key of this user."""
    key = stack.keys.create(email, "Test", **user)
    with TestClient(create_app(stack), headers={"Authorization": f"Bearer {key}"}) as client:
        yield client


def problem(response: Response, status: int, code: str) -> dict[str, Any]:
    """The problem in a response, checked for its form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail", "code"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["title"]
    assert body["detail"]
    return body
