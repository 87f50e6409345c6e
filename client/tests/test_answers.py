"""How answers and refusals are read."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from promptstack_client import (
    ApiError,
    Client,
    Conflict,
    IdempotencyConflict,
    InvalidRequest,
    NotAuthenticated,
    NotEnded,
    NotFound,
    PromptStackError,
    ServerError,
    UnexpectedAnswer,
    Unsuccessful,
)

Make = Callable[..., Client]
JOB = "01a229a9-6921-727d-884b-8783fade0286"


def answering(status: int, **content: Any) -> Callable[[httpx2.Request], httpx2.Response]:
    return lambda request: httpx2.Response(status, **content)


def job(**fields: Any) -> dict[str, Any]:
    return {
        "id": JOB,
        "kind": "generation",
        "state": "succeeded",
        "provider": "demo",
        "model": "demo",
        "created_at": "2026-11-30T10:00:00Z",
        **fields,
    }


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (401, "NOT_AUTHENTICATED", NotAuthenticated),
        (404, "NOT_FOUND", NotFound),
        (409, "WRONG_STATE", Conflict),
        (409, "IDEMPOTENCY_CONFLICT", IdempotencyConflict),
        (422, "UNKNOWN_MODEL", InvalidRequest),
        (418, "TEAPOT", ApiError),
        (500, "INTERNAL_SERVER_ERROR", ServerError),
    ],
)
def test_a_problem_is_an_error_of_its_class(
    make: Make, status: int, code: str, kind: type[ApiError]
) -> None:
    said = {"status": status, "code": code, "detail": "It is so.", "field": "/items/3/text"}
    with pytest.raises(kind) as caught:
        make(answering(status, json=said)).jobs.get(JOB)
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, PromptStackError)
    assert (error.status, error.code, error.detail) == (status, code, "It is so.")
    assert error.field == "/items/3/text"
    assert str(error) == f"It is so. (/items/3/text) [{status} {code}]"


@pytest.mark.parametrize(
    "content",
    [{"text": "<html>Hello</html>"}, {"json": {"hello": 1}}, {"json": [1]}, {"json": None}],
    ids=["html", "other", "list", "null"],
)
def test_an_answer_of_another_server_is_told(make: Make, content: dict[str, Any]) -> None:
    with pytest.raises(UnexpectedAnswer, match=r"GET http://server/api/v1/jobs/.* answered 200"):
        make(answering(200, **content)).jobs.get(JOB)


def test_a_refusal_of_another_server_is_told(make: Make) -> None:
    with pytest.raises(NotFound) as caught:
        make(answering(404, text="<html>nginx</html>")).jobs.get(JOB)
    assert (caught.value.code, caught.value.detail) == ("HTTP_404", "Not Found")


def test_what_a_newer_server_says_is_kept(make: Make) -> None:
    found = make(answering(200, json=job(state="dreaming", mood={"is": "good"}))).jobs.get(JOB)
    assert found.state == "dreaming"
    assert found.model_extra == {"mood": {"is": "good"}}
    assert found.ended


def test_only_a_job_with_a_result_has_a_text(make: Make) -> None:
    for fields, error in (
        ({"state": "running"}, NotEnded),
        ({"state": "failed", "error_code": "CONTEXT_TOO_LONG", "error": "Too long."}, Unsuccessful),
    ):
        with pytest.raises(error):
            _ = make(answering(200, json=job(**fields))).jobs.get(JOB).text
    done = make(answering(200, json=job(result={"text": "Hello."}))).jobs.get(JOB)
    assert done.text == "Hello."


def test_pages_are_asked_for_when_the_loop_comes_to_them(make: Make) -> None:
    asked: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(str(request.url.query, "ascii"))
        first = "after" not in request.url.params
        page = {"jobs": [job(), job()], "after": JOB if first else None, "before": None}
        return httpx2.Response(200, json=page)

    jobs = make(answer).jobs.list(state="failed", tag=None, limit=2)
    assert asked == []
    assert len(list(jobs)) == 4
    assert asked == ["state=failed&limit=2", f"state=failed&limit=2&after={JOB}"]
    assert [page.after is None for page in jobs.pages()] == [False, True]
    assert jobs.first().items[0].provider == "demo"
