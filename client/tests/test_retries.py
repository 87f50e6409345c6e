"""What is sent again, when, and how often."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from promptstack_client import (
    ApiError,
    Client,
    ConnectionFailed,
    RateLimited,
    ServerError,
    TimedOut,
    Unavailable,
)

Make = Callable[..., Client]
JOB: dict[str, Any] = {
    "id": "01a229a9-6921-727d-884b-8783fade0286",
    "kind": "generation",
    "state": "queued",
    "provider": "demo",
    "model": "demo",
    "created_at": "2026-11-30T10:00:00Z",
}


class Server:
    """Answers each request with what comes next; the last answer is repeated."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, type):
            raise answer("broken", request=request)
        status, headers = answer if isinstance(answer, tuple) else (answer, {})
        return httpx2.Response(status, headers=headers, json=JOB if status < 400 else None)


def test_a_post_is_sent_again_under_the_same_key(make: Make, pauses: list[float]) -> None:
    server = Server(httpx2.ReadError, 503, 202)
    assert str(make(server).generate("Hello.").id) == JOB["id"]
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert (len(server.requests), len(keys)) == (3, 1)
    assert json.loads(server.requests[2].content) == {"prompt": "Hello."}
    assert 0.25 <= pauses[0] <= 0.5 <= pauses[1] <= 1.0


def test_each_post_has_a_key_of_its_own_unless_it_is_given(make: Make) -> None:
    server = Server(202)
    client = make(server)
    for key in (None, None, "mine"):
        client.generate("Hello.", idempotency_key=key)
    keys = [request.headers["idempotency-key"] for request in server.requests]
    assert len(set(keys)) == 3
    assert keys[2] == "mine"


@pytest.mark.parametrize("status", [429, 503])
def test_the_client_waits_as_long_as_it_is_told(
    make: Make, pauses: list[float], status: int
) -> None:
    server = Server((status, {"Retry-After": "7"}), 202)
    make(server).generate("Hello.")
    assert 7.0 < pauses[0] <= 7.5


def test_nobody_waits_for_minutes_unasked(make: Make, pauses: list[float]) -> None:
    with pytest.raises(RateLimited) as caught:
        make(Server((429, {"Retry-After": "3600"}))).generate("Hello.")
    assert caught.value.retry_after == 3600
    assert pauses == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [(503, Unavailable), (502, ServerError), (httpx2.ReadTimeout, TimedOut)],
    ids=["unavailable", "proxy", "timeout"],
)
def test_retries_are_bounded(
    make: Make, pauses: list[float], answer: Any, error: type[Exception]
) -> None:
    server = Server(answer)
    with pytest.raises(error):
        make(server, max_retries=3).generate("Hello.")
    assert (len(server.requests), len(pauses)) == (4, 3)


def test_a_failed_provider_is_not_asked_again_by_itself(make: Make, pauses: list[float]) -> None:
    asked = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        return httpx2.Response(502, json={"code": "PROVIDER_BROKE", "detail": "It broke."})

    with pytest.raises(ServerError, match="PROVIDER_BROKE"):
        make(answer).search("boats")
    assert len(asked) == 1


@pytest.mark.parametrize("status", [400, 402, 401, 403, 404, 409, 413, 422, 500])
def test_what_will_not_change_is_not_sent_again(
    make: Make, pauses: list[float], status: int
) -> None:
    server = Server(status)
    with pytest.raises(ApiError):
        make(server).generate("Hello.")
    assert len(server.requests) == 1


def test_what_could_be_done_twice_is_sent_again_only_where_it_has_not_arrived(
    make: Make, pauses: list[float]
) -> None:
    for answer, times in ((httpx2.ConnectError, 2), (503, 2), (httpx2.ReadError, 1), (502, 1)):
        server = Server(answer)
        with pytest.raises((ConnectionFailed, ServerError)):
            make(server, max_retries=1).jobs.retry(JOB["id"])
        assert "idempotency-key" not in server.requests[0].headers
        assert len(server.requests) == times, answer


def test_a_state_that_is_over_soon_is_waited_for(make: Make, pauses: list[float]) -> None:
    server = Server((409, {"Retry-After": "1"}), 202)
    make(server).jobs.retry(JOB["id"])
    assert len(server.requests) == 2
    assert 1.0 < pauses[0] <= 1.5


def test_a_list_keeps_its_key(make: Make, pauses: list[float]) -> None:
    bodies = []
    keys = set()

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content)["jobs"])
        keys.add(request.headers["idempotency-key"])
        if len(bodies) == 1:
            raise httpx2.ReadError("broken", request=request)
        return httpx2.Response(202, json={"jobs": [JOB, JOB]})

    entries = [{"prompt": "One."}, {"prompt": "Two.", "idempotency_key": "mine"}]
    assert len(make(answer).bulk(entries)) == 2  # type: ignore[arg-type]
    assert bodies == [entries, entries]
    assert len(keys) == 1
