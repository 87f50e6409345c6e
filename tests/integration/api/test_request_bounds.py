"""What a caller may ask for is bounded by the same types at every door."""

import pkgutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from sqlalchemy import text

from promptstack.services.errors import InvalidInput
from promptstack.tasks.composition import PromptStack
from tests.http import problem, serve

NO_TIMES = {
    "not a number": "NaN",
    "infinite": "1e400",
    "less than none": "-5",
    "none": "0",
    "more than a year": "1e8",
}
NO_OPTIONS = {
    "an api that is a list": '{"api": []}',
    "an api that is an object": '{"api": {"x": 1}}',
    "no number": '{"x": NaN}',
    "a NUL": r'{"x": "\u0000"}',
    "half a surrogate pair": r'{"x": ["\ud800"]}',
    "hundreds of digits": '{"x": 1' + 400 * "0" + "}",
    "many levels": '{"x": ' + 60 * "[" + 60 * "]" + "}",
    "many fields": "{" + ", ".join(f'"x{n}": 1' for n in range(10_001)) + "}",
    "many values deep down": '{"x": {"y": [' + 10_001 * "[0]," + "[0]]}}",
    "many bytes": '{"x": "' + 1_000_001 * "x" + '"}',
}
ASKED = {"generations": '"prompt": "x"', "runs/generations": '"items": ["x"]'}
NO_OFFSETS = ["2026-01-01T00:00:00+14:01", "2026-01-01T00:00:00-23:59", "0001-01-01T00:00:00+10:00"]


@pytest.fixture
def client(stack: PromptStack) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def refused(client: TestClient, path: str, fields: str) -> dict[str, Any]:
    body = f'{{"provider": "openai", {ASKED[path]}, {fields}}}'
    headers = {"Content-Type": "application/json"}
    response = client.post(f"/api/v1/{path}", content=body, headers=headers)
    return problem(response, 422, "INVALID_INPUT")


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("seconds", NO_TIMES.values(), ids=NO_TIMES.keys())
def test_a_time_to_live_is_one_for_jobs_and_runs(
    stack: PromptStack, client: TestClient, path: str, seconds: str
) -> None:
    refused(client, path, f'"expires_in": {seconds}')
    ask: Callable[..., object] = stack.runs.generate
    if path == "generations":
        ask = stack.jobs.enqueue_generation
    with pytest.raises(InvalidInput, match="expires_in"):
        ask("x", expires_in=float(seconds))
    assert _rows(stack) == 0


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("options", NO_OPTIONS.values(), ids=NO_OPTIONS.keys())
def test_options_are_checked_for_jobs_and_runs(
    stack: PromptStack, client: TestClient, path: str, options: str
) -> None:
    refused(client, path, f'"options": {options}')
    if path == "generations":
        refused(client, path, f'"fallbacks": [{{"provider": "openai", "options": {options}}}]')
    assert _rows(stack) == 0


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize(
    "fields", ['"max_retries": 101', '"max_retries": -1', '"max_retries": 1e30']
)
def test_retries_are_counted_for_jobs_and_runs(client: TestClient, path: str, fields: str) -> None:
    refused(client, path, fields)


@pytest.mark.parametrize(
    "fields",
    [
        '"in_flight": 1001',
        '"max_cost_usd": "Infinity"',
        f'"name": "{201 * "x"}"',
    ],
)
def test_what_only_runs_have_is_bounded_too(client: TestClient, fields: str) -> None:
    refused(client, "runs/generations", f'{fields}, "max_tokens": 1')


@pytest.mark.parametrize("since", NO_OFFSETS)
def test_a_time_has_an_offset_that_there_is(
    stack: PromptStack, client: TestClient, since: str
) -> None:
    for path in ("usage", "usage/calls"):
        found = client.get(f"/api/v1/{path}", params={"since": since})
        problem(found, 422, "INVALID_INPUT")
    problem(client.get("/api/v1/usage", params={"until": since}), 422, "INVALID_INPUT")
    problem(client.get("/api/v1/jobs", params={"since": since}), 422, "INVALID_INPUT")
    body = {"action": "retry", "filter": {"since": since}}
    found = client.post("/api/v1/operations", json=body)
    problem(found, 422, "INVALID_INPUT")
    time = datetime.fromisoformat(since)
    for call in (stack.usage.sums, stack.usage.calls, stack.usage.unsettled, stack.jobs.get_many):
        with pytest.raises(InvalidInput, match="since"):
            call(since=time)
    with pytest.raises(InvalidInput, match="until"):
        stack.usage.sums(until=time)


def test_a_time_with_the_largest_offset_is_taken_and_one_without_is_in_utc(
    stack: PromptStack, client: TestClient
) -> None:
    for since in ("2026-01-01T00:00:00+14:00", "2026-01-01T00:00:00-14:00", "2026-01-01"):
        assert client.get("/api/v1/usage", params={"since": since}).status_code == 200
    job = stack.jobs.enqueue_generation("x")
    stack.jobs.cancel(job.id)
    east = timezone(timedelta(hours=14))
    began = stack.jobs.get(job.id).created_at
    later = (began + timedelta(seconds=1)).astimezone(UTC).replace(tzinfo=None)
    assert stack.jobs.get_many(since=later) == []
    assert len(stack.jobs.get_many(since=began.astimezone(east))) == 1


def _rows(stack: PromptStack) -> int:
    with stack.ledger.transaction() as unit:
        count = text("SELECT (SELECT count(*) FROM jobs) + (SELECT count(*) FROM runs)")
        return int(unit.session.scalar(count) or 0)


def test_a_cost_limit_holds_as_far_as_the_ledger_can_enforce_it(
    client: TestClient,
) -> None:
    for given, held in (("0", "0"), ("1e-10", "0.0000000001"), ("0.12345678919", "0.1234567891")):
        response = _ask_for_a_run(client, given)
        assert (response.status_code, response.json()["max_cost_usd"]) == (202, held)
    # It would be a limit of nothing at all, which nobody has asked for.
    problem(_ask_for_a_run(client, "1e-400000"), 422, "INVALID_INPUT")


def _ask_for_a_run(client: TestClient, max_cost_usd: str) -> Response:
    body = {"provider": "openai", "items": ["x"], "max_tokens": 1, "max_cost_usd": max_cost_usd}
    return client.post("/api/v1/runs/generations", json=body)


def test_a_request_is_checked_before_a_transaction_is_open(
    stack: PromptStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL ends one in which nothing happens for some seconds, and has others wait for it."""
    open_then: list[int] = []

    def seen(real: Callable[..., Any]) -> Callable[..., Any]:
        def look(*values: Any, **named: Any) -> Any:
            open_then.append(stack.ledger.engine.pool.checkedout())  # type: ignore[attr-defined]
            return real(*values, **named)

        return look

    for place in (
        "promptstack.services.validation.bounds.check_storable",
        "promptstack.services.validation.bounds.check_storable_json",
        "promptstack.services.llm.request_bounds.JsonBounds.check",
        "promptstack.services.jobs.checks.JobChecks._check_size",
        "promptstack.services.jobs.new_job.NewJob.__post_init__",
        "promptstack.services.llm.demo.DemoService.check_options",
    ):
        owner, name = place.rsplit(".", 1)
        monkeypatch.setattr(place, seen(getattr(pkgutil.resolve_name(owner), name)))
    with stack.ledger.transaction() as unit:
        user_id = unit.users.create(email="ada@example.org").id
    stack.jobs.enqueue_generation("x", user_id=user_id, options={"fail_times": 1})
    stack.jobs.enqueue_embedding("x", source="x", user_id=user_id)
    stack.runs.generate(["x"], user_id=user_id, provider_options={"fail_times": 1})
    assert len(open_then) >= 10
    assert set(open_then) == {0}
