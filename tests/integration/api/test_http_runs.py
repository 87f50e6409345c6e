"""Runs over HTTP, on the real ledger and Redis; their jobs are worked on here."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.repositories.models import JobKind, JobState
from promptstack.repositories.operation_models import OperationAction
from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.runs.runs import Change
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import operate
from tests.runs import in_ledger, work

RUNS = "/api/v1/runs"
PROMPTS = [{"custom_id": f"id-{number}", "prompt": f"Say {number}."} for number in range(5)]


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def accepted(client: TestClient, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"{RUNS}/{path}", json=body)
    assert response.status_code == 202, response.text
    run: dict[str, Any] = response.json()
    assert response.headers["location"] == f"{RUNS}/{run['id']}"
    return run


def done(stack: WorkerServices, client: TestClient, run: dict[str, Any]) -> dict[str, Any]:
    work(stack, UUID(run["id"]))
    found: dict[str, Any] = client.get(f"{RUNS}/{run['id']}").json()
    return found


def test_prompts_are_answered_in_order_and_read_by_the_page(
    stack: WorkerServices, client: TestClient
) -> None:
    items = [{**item, "lang": "en"} for item in PROMPTS]
    run = accepted(client, "generations", items=items, provider="demo", name="mine")
    assert (run["state"], run["total"], run["name"]) == ("running", 5, "mine")
    run = done(stack, client, run)
    assert (run["state"], run["succeeded"], run["failed"]) == ("completed", 5, 0)
    seen: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        page = client.get(f"{RUNS}/{run['id']}/results?limit=2&after={after}").json()
        assert 1 <= len(page["results"]) <= 2
        seen += page["results"]
        after = page["after"]
    assert [row["custom_id"] for row in seen] == [item["custom_id"] for item in PROMPTS]
    assert all(row["metadata"] == {"lang": "en"} for row in seen)
    assert all(
        item["prompt"] in row["answer"]["text"] for item, row in zip(PROMPTS, seen, strict=True)
    )
    assert "vector" not in seen[0]


def test_messages_of_openais_clients_are_taken_at_every_door(
    stack: WorkerServices, client: TestClient, tmp_path: Path
) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    turns: list[dict[str, Any]] = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "It is blue."},
    ]
    body = {"messages": turns, "provider": "demo", "options": {}}
    job = client.post("/api/v1/generations", json=body)
    assert job.status_code == 202, job.text
    run = accepted(client, "generations", items=[{"messages": turns}], provider="demo")
    assert done(stack, client, run)["succeeded"] == 1
    same = stack.jobs.enqueue_generation(messages=turns, provider="demo")
    source = tmp_path / "in.jsonl"
    source.write_text(json.dumps({"messages": turns}))
    ready = stack.runs.prepare_generation(source, provider="demo")
    assert (same.model, ready.items, ready.bad) == (job.json()["model"], 1, 0)
    stack.runs.discard(ready.run_id)


def test_a_conversation_that_a_provider_cannot_take_is_told_by_its_line(
    stack: WorkerServices, tmp_path: Path
) -> None:
    named = {"role": "user", "name": "Ann", "content": "Hi"}
    late = [{"role": "user", "content": "Hi"}, {"role": "developer", "content": "Be brief."}]
    source = tmp_path / "in.jsonl"
    source.write_text(
        "\n".join(json.dumps({"messages": turns}) for turns in ([named], late, late[:1]))
    )
    ready = stack.runs.prepare_generation(source, provider="anthropic")
    assert [(fault.position, fault.reason.split("; ")[0]) for fault in ready.faults] == [
        (1, "Provider 'anthropic' takes no names of who speaks"),
        (2, "Provider 'anthropic' takes system turns only at the start."),
    ]
    assert (ready.items, ready.bad) == (3, 2)
    stack.runs.discard(ready.run_id)


def test_a_page_ends_where_it_has_many_bytes(
    stack: WorkerServices, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "promptstack.api.http.runs.PAGE_BYTES", 2_500
    )  # two vectors of 1 kB, and one more
    items = [f"text {number}" for number in range(7)]
    run = done(stack, client, accepted(client, "embeddings", items=items, provider="local"))
    pages: list[list[int]] = []
    after: int | None = 0
    while after is not None:
        page = client.get(f"{RUNS}/{run['id']}/results?after={after}").json()
        pages.append([row["position"] for row in page["results"]])
        after = page["after"]
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]


def test_texts_are_embedded(stack: WorkerServices, client: TestClient) -> None:
    run = accepted(client, "embeddings", items=["one", {"text": "two"}], provider="local")
    run = done(stack, client, run)
    assert run["succeeded"] == 2
    page = client.get(f"{RUNS}/{run['id']}/results").json()
    assert [len(row["vector"]) for row in page["results"]] == [256, 256]
    assert page["after"] is None


def test_bad_items_refuse_a_run_or_end_in_its_failures(
    stack: WorkerServices, client: TestClient
) -> None:
    items = [*PROMPTS, {"prompt": " "}, {"prompt": 7}, {"custom_id": "id-0", "prompt": "Again?"}]
    body = {"items": items, "provider": "demo"}
    told = problem(client.post(f"{RUNS}/generations", json=body), 422, "BAD_INPUTS")
    assert "3 of 8" in told["detail"]
    assert "6: The text is empty; 7: The field" in told["detail"]
    assert ".." not in told["detail"]
    assert client.get(RUNS).json()["runs"] == []
    run = done(stack, client, accepted(client, "generations", **body, skip_bad=True))
    assert (run["state"], run["succeeded"], run["failed"]) == ("completed", 5, 3)
    first = client.get(f"{RUNS}/{run['id']}/failures?limit=2").json()
    rest = client.get(f"{RUNS}/{run['id']}/failures?limit=2&after={first['after']}").json()
    codes = [row["code"] for row in (*first["failures"], *rest["failures"])]
    assert codes == ["EMPTY_TEXT", "WRONG_TYPE", "DUPLICATE_ID"]
    assert rest["after"] is None


def test_a_part_of_a_run_is_cancelled_and_retried_with_it_alone(
    stack: WorkerServices, client: TestClient
) -> None:
    run = client.post(f"{RUNS}/embeddings", json={"items": ["a", "b"]}).json()["id"]
    [shard] = stack.jobs.get_many(kind=JobKind.SHARD)
    for what in ("cancel", "retry"):
        told = problem(client.post(f"/api/v1/jobs/{shard.id}/{what}"), 409, "WRONG_STATE")
        assert run in told["detail"]
    with stack.ledger.transaction() as unit:
        unit.jobs.cancel(shard.id)
    cancelled = JobState.CANCELLED
    assert operate(stack, OperationAction.RETRY, state=cancelled).matched == 0
    parts = operate(stack, OperationAction.RETRY, state=cancelled, kind=JobKind.SHARD)
    assert (parts.matched, parts.done, parts.failed) == (1, 0, 1)
    assert parts.failures[0].job_id == shard.id
    assert run in parts.failures[0].error


def test_templates_and_limits_hold(client: TestClient) -> None:
    run = accepted(
        client,
        "generations",
        items=[{"city": "Rome"}],
        template="Where is {city}?",
        provider="openai",
        max_tokens=5,
        max_cost_usd="0.5",
        in_flight=3,
    )
    assert (run["max_cost_usd"], run["in_flight"]) == ("0.5", 3)


def test_a_text_is_a_text_and_never_a_file(stack: WorkerServices, client: TestClient) -> None:
    run = accepted(client, "generations", items=["/etc/passwd", "-"], provider="demo")
    assert run["total"] == 2
    run = done(stack, client, run)
    page = client.get(f"{RUNS}/{run['id']}/results").json()
    assert "/etc/passwd" in page["results"][0]["answer"]["text"]


@pytest.mark.parametrize(
    "body",
    [
        {"items": []},
        {"items": "/etc/passwd"},
        {"items": [3]},
        {"items": ["x"], "unknown": 1},
        {"items": ["x"], "in_flight": 0},
        {"items": ["x"], "max_cost_usd": -1},
        {"items": ["x"], "max_cost_usd": "NaN"},
        {"items": ["x"], "max_cost_usd": "1e30"},
        {"items": ["x"], "provider": "nobody"},
        {"items": ["x\0"]},
        {"items": [{"prompt": "x"}], "template": "{missing}"},
        {"items": ["x"], "json_schema": {"type": "nothing"}},
        {"items": ["x"], "json_schema": {"$ref": "#/$defs/missing"}},
        {"items": ["x"], "json_schema": {"$ref": "http://127.0.0.1:1/schema.json"}},
        {"items": ["x"], "json_schema": {"pattern": "(?=a)b"}},
        {"items": ["x"], "json_schema": {"patternProperties": {"a": {}}}},
        {"items": ["x"], "temperature": 9},
    ],
)
def test_what_cannot_be_a_run_is_refused_and_leaves_nothing(
    stack: WorkerServices, client: TestClient, body: dict[str, Any]
) -> None:
    response = client.post(f"{RUNS}/generations", json={"provider": "openai", **body})
    assert response.status_code == 422, response.text
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(text("SELECT count(*) FROM runs")) == 0


@pytest.mark.parametrize("value", [True, "5", " 5 ", "1_000", "1e3"])
@pytest.mark.parametrize(
    "name", ["max_tokens", "seed", "in_flight", "max_retries", "expires_in", "temperature"]
)
def test_what_is_no_number_is_none_at_any_door(
    client: TestClient, name: str, value: object
) -> None:
    for door in ("generations", "runs/generations"):
        body = {"provider": "openai", name: value}
        body |= {"items": ["x"]} if door.startswith("runs") else {"prompt": "x"}
        response = client.post(f"/api/v1/{door}", json=body)
        assert response.status_code == 422, (door, response.text)


LARGE = 2**64 + 1
"""Needs more than 64 bits."""


@pytest.mark.parametrize(
    "body",
    [
        {"json_schema": {"type": "integer", "maximum": LARGE}},
        {"options": {"a": LARGE}},
        {"tools": [{"name": "f", "parameters": {"type": "object", "maxProperties": LARGE}}]},
        {"items": [{"text": "x", "avogadro": LARGE}], "template": "{text} {avogadro}"},
    ],
)
def test_runs_accept_integers_of_any_size_as_single_jobs_do(
    client: TestClient, body: dict[str, Any]
) -> None:
    asked = {"items": ["x"], "provider": "openai", **body}
    response = client.post(f"{RUNS}/generations", json=asked)
    assert response.status_code == 202, response.text


def test_an_integer_of_any_size_comes_back_as_it_was_sent(
    stack: WorkerServices, client: TestClient, tmp_path: Path
) -> None:
    items = [{"prompt": "Say it.", "avogadro": LARGE}]
    run = accepted(client, "generations", items=items, provider="demo")
    done(stack, client, run)
    [row] = client.get(f"{RUNS}/{run['id']}/results").json()["results"]
    assert row["metadata"] == {"avogadro": LARGE}
    for name in ("out.jsonl", "out.csv", "out.parquet"):
        shown = CliRunner().invoke(
            build(), ["runs", "export", run["id"], "-o", str(tmp_path / name)]
        )
        assert shown.exit_code == 0, shown.output
    [line] = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(line)["metadata"] == {"avogadro": LARGE}


def test_cancel_and_retry_follow_the_run(stack: WorkerServices, client: TestClient) -> None:
    run = accepted(client, "generations", items=PROMPTS, provider="demo")
    address = f"{RUNS}/{run['id']}"
    problem(client.post(f"{address}/retry"), 409, "WRONG_STATE")
    assert client.post(f"{address}/cancel").json()["state"] == "cancelled"
    problem(client.post(f"{address}/cancel"), 409, "WRONG_STATE")
    assert client.post(f"{address}/retry").json()["state"] == "running"
    assert done(stack, client, run)["succeeded"] == 5


@pytest.mark.parametrize("amount", ["NaN", "-Infinity", -1, "1e30"])
def test_a_retry_takes_no_limit_that_is_no_amount(
    stack: WorkerServices, client: TestClient, amount: Any
) -> None:
    run = accepted(client, "embeddings", items=["one"], provider="local")
    address = f"{RUNS}/{run['id']}"
    client.post(f"{address}/cancel")
    refused = client.post(f"{address}/retry", json={"max_cost_usd": amount})
    assert refused.status_code == 422, refused.text
    assert stack.runs.get(UUID(run["id"])).state == "cancelled"


@pytest.mark.parametrize("action", ["retry", "resume"])
def test_a_body_that_says_it_is_text_is_no_json(client: TestClient, action: str) -> None:
    run = accepted(client, "embeddings", items=["one"], provider="local")
    client.post(f"{RUNS}/{run['id']}/cancel")
    sent = client.post(
        f"{RUNS}/{run['id']}/{action}",
        content=b'{"max_cost_usd": "1.00"}',
        headers={"Content-Type": "text/plain"},
    )
    problem(sent, 415, "UNSUPPORTED_MEDIA_TYPE")


def test_others_runs_do_not_exist(stack: WorkerServices, client: TestClient) -> None:
    mine = accepted(client, "generations", items=PROMPTS, provider="demo")["id"]
    with serve(stack, "stranger@example.org") as stranger:
        for run_id in (mine, uuid4()):
            for method, path in (
                ("GET", ""),
                ("GET", "/results"),
                ("GET", "/failures"),
                ("POST", "/cancel"),
                ("POST", "/retry"),
                ("POST", "/resume"),
                ("DELETE", ""),
            ):
                response = stranger.request(method, f"{RUNS}/{run_id}{path}")
                problem(response, 404, "NOT_FOUND")
        assert stranger.get(RUNS).json()["runs"] == []
    with serve(stack, "root@example.org", is_admin=True) as admin:
        assert [run["id"] for run in admin.get(RUNS, params={"owner": "all"}).json()["runs"]] == [
            mine
        ]
        assert admin.get(RUNS).json()["runs"] == []


def test_one_users_answers_serve_no_other(stack: WorkerServices, client: TestClient) -> None:
    done(stack, client, accepted(client, "generations", items=PROMPTS, provider="demo"))
    again = done(stack, client, accepted(client, "generations", items=PROMPTS, provider="demo"))
    assert again["reused"] == 5
    with serve(stack, "stranger@example.org") as stranger:
        run = accepted(stranger, "generations", items=PROMPTS, provider="demo")
        assert done(stack, stranger, run)["reused"] == 0


@pytest.mark.parametrize(
    "item",
    [
        '{"prompt": "x", "score": NaN}',
        '{"prompt": "x", "score": 1e999}',
        '{"prompt": "x", "note": "\\ud800"}',
        '{"prompt": "x", "note": "\\u0000"}',
        '{"prompt": "x", "\\ud800": 1}',
        '{"prompt": "\\ud800"}',
        '{"custom_id": "\\ud800", "prompt": "x"}',
        '{"custom_id": {}, "prompt": "x"}',
        '{"prompt": "x", "deep": ' + "[" * 500 + "]" * 500 + "}",
        '{"messages": [{"role": "user"}]}',
        '{"messages": [{"role": "king", "content": "x"}]}',
        '{"prompt": "x", "number": ' + "9" * 400 + "}",
    ],
)
def test_no_item_whatever_makes_the_server_fail(
    stack: WorkerServices, client: TestClient, item: str
) -> None:
    body = f'{{"items": ["good", {item}], "provider": "demo", "skip_bad": true}}'
    response = client.post(
        f"{RUNS}/generations", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code in {202, 422}, response.text
    if response.status_code == 202:
        run = done(stack, client, response.json())
        assert (run["state"], run["succeeded"] + run["failed"]) == ("completed", 2)
        assert client.get(f"{RUNS}/{run['id']}/results").status_code == 200
        assert client.get(f"{RUNS}/{run['id']}/failures").status_code == 200


def test_a_cancelled_run_goes_on_where_it_was_and_what_failed_stays_failed(
    stack: WorkerServices, client: TestClient
) -> None:
    run = accepted(client, "generations", items=PROMPTS, provider="demo")
    run_id = UUID(run["id"])
    problem(client.post(f"{RUNS}/{run_id}/resume"), 409, "WRONG_STATE")
    with stack.ledger.transaction() as unit:
        unit.outcomes.end(run_id, [Ended(1, error_code="REFUSED", error="It was refused.")])
        unit.runs.change(run_id, Change(failed=1))
    assert client.post(f"{RUNS}/{run_id}/cancel").json()["state"] == "cancelled"
    resumed = client.post(f"{RUNS}/{run_id}/resume")
    assert (resumed.status_code, resumed.json()["state"]) == (200, "running")
    run = done(stack, client, run)
    assert (run["state"], run["succeeded"], run["failed"]) == ("completed", 4, 1)
    told = problem(client.post(f"{RUNS}/{run_id}/resume"), 409, "WRONG_STATE")
    assert "`retry`" in told["detail"]
    client.post(f"{RUNS}/{run_id}/retry")
    assert done(stack, client, run)["succeeded"] == 5


def test_a_run_is_deleted_with_its_items_when_it_has_ended(
    stack: WorkerServices, client: TestClient
) -> None:
    run = accepted(client, "generations", items=PROMPTS, provider="demo")
    url = f"{RUNS}/{run['id']}"
    assert "cancel it" in problem(client.delete(url), 409, "WRONG_STATE")["detail"]
    with stack.ledger.transaction() as unit:  # as if a worker had not handed its shard back yet
        unit.runs.finish(UUID(run["id"]), RunState.CANCELLED)
    refused = client.delete(url)
    assert "not over yet" in problem(refused, 409, "WRONG_STATE")["detail"]
    assert refused.headers["retry-after"] == "1"
    stack.run_maintenance.run_once(retention=0.0)
    assert client.delete(url).status_code == 204
    problem(client.get(url), 404, "NOT_FOUND")
    problem(client.get(f"{url}/results/jsonl"), 404, "NOT_FOUND")
    problem(client.delete(url), 404, "NOT_FOUND")
    for _ in range(2):
        stack.run_maintenance.run_once(retention=1e9)
    for table in ("items", "outcomes", "pruned_runs"):
        assert in_ledger(stack, f"SELECT count(*) FROM {table}") == 0
    assert in_ledger(stack, "SELECT count(*) FROM audit_log WHERE action = 'run.deleted'") == 0


def test_who_comes_just_before_the_end_of_a_run_is_told_when_to_come_again(
    stack: WorkerServices, client: TestClient
) -> None:
    run = accepted(client, "generations", items=PROMPTS, provider="demo")
    url = f"{RUNS}/{run['id']}"
    asked = (
        partial(client.delete, url),
        partial(client.post, f"{url}/retry"),
        partial(client.post, f"{url}/resume"),
    )
    for ask in asked:  # it may go on for hours
        assert "retry-after" not in ask().headers
    with stack.ledger.transaction() as unit:  # all items have ended, and its index is being built
        unit.runs.finalize(UUID(run["id"]))
    for ask in asked:
        refused = ask()
        problem(refused, 409, "WRONG_STATE")
        assert refused.headers["retry-after"] == "1"


def test_the_deletion_of_another_users_run_is_audited(
    stack: WorkerServices, client: TestClient
) -> None:
    run = accepted(client, "generations", items=PROMPTS, provider="demo")
    done(stack, client, run)
    with serve(stack, "root@example.org", is_admin=True) as admin:
        assert admin.delete(f"{RUNS}/{run['id']}").status_code == 204
        [entry] = admin.get("/api/v1/audit?action=run.deleted").json()["entries"]
    assert entry["object_id"] == run["id"]


def test_runs_are_found_by_what_they_are(stack: WorkerServices, client: TestClient) -> None:
    one = accepted(client, "generations", items=["a"], provider="demo", tags=["red", "blue"])
    two = accepted(client, "embeddings", items=["b"], provider="local", tags=["red"])
    client.post(f"{RUNS}/{two['id']}/cancel")
    middle = two["created_at"].replace("+00:00", "Z")
    found = {
        query: [run["id"] for run in client.get(f"{RUNS}?{query}").json()["runs"]]
        for query in (
            "tag=red",
            "tag=blue",
            "state=cancelled",
            "kind=embedding",
            f"since={middle}",
            f"until={middle}",
            "state=running&kind=embedding",
        )
    }
    assert list(found.values()) == [
        [two["id"], one["id"]],
        [one["id"]],
        [two["id"]],
        [two["id"]],
        [two["id"]],
        [one["id"]],
        [],
    ]
    problem(client.get(f"{RUNS}?since={middle}&until={middle}"), 422, "INVALID_INPUT")
