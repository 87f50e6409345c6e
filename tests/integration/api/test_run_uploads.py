"""Runs whose items come as a file: as a body, and in a form; packed, repeated and too large."""

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from promptstack.config.settings import Settings, load_settings
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.runs import in_ledger, work

RUNS = "/api/v1/runs"
ROWS = [{"custom_id": f"id-{n}", "text": f"Day {n} was quiet.", "day": n} for n in range(6)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
JSONL, CSV, PARQUET = "application/x-ndjson", "text/csv", "application/vnd.apache.parquet"


def as_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


def as_csv() -> bytes:
    rows = [f"{row['custom_id']},{row['text']},{row['day']}\n" for row in ROWS]
    return "".join(["custom_id,text,day\n", *rows]).encode()


def zstd(content: bytes) -> bytes:
    packed = pa.BufferOutputStream()
    with pa.CompressedOutputStream(packed, "zstd") as file:
        file.write(content)
    return bytes(packed.getvalue())


CUT_OFF = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n{"text": "x"}\n'
)
BODIES = {
    "jsonl": (LINES, {"Content-Type": JSONL}),
    "jsonl-gzip": (gzip.compress(LINES), {"Content-Type": JSONL, "Content-Encoding": "gzip"}),
    "jsonl-zstd": (zstd(LINES), {"Content-Type": JSONL, "Content-Encoding": "zstd"}),
    "csv": (as_csv(), {"Content-Type": CSV}),
    "csv-gzip": (gzip.compress(as_csv()), {"Content-Type": CSV, "Content-Encoding": "gzip"}),
    "parquet": (as_parquet(), {"Content-Type": PARQUET}),
    "parquet-zstd": (zstd(as_parquet()), {"Content-Type": PARQUET, "Content-Encoding": "zstd"}),
}
FORMS = {
    "jsonl": ("in.jsonl", LINES, "application/octet-stream"),
    "jsonl-gzip": ("in.jsonl.gz", gzip.compress(LINES), "application/gzip"),
    "csv": ("in.csv", as_csv(), "text/plain"),
    "parquet": ("in.parquet", as_parquet(), "application/octet-stream"),
    "no-name": ("rows", as_csv(), CSV),
}


@pytest.fixture
def settings(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """With bounds that a test can pass."""
    monkeypatch.setenv("MAX_UPLOAD_BYTES", "300000")
    monkeypatch.setenv("MAX_UNPACKED_BYTES", "2000000")
    monkeypatch.setenv("MAX_RUN_ITEMS", "500")
    monkeypatch.setenv("MAX_BODY_BYTES", "100000")
    return load_settings(_env_file=None)


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def send(
    client: TestClient, content: bytes, kind: str = JSONL, query: str = "", **headers: str
) -> Any:
    return client.post(
        f"{RUNS}/embeddings?provider=local{query}",
        content=content,
        headers={"Content-Type": kind, **headers},
    )


def has_all(stack: WorkerServices, response: Any) -> bool:
    assert response.status_code == 202, response.text
    run = work(stack, UUID(response.json()["id"]))
    assert (run.state, run.succeeded, run.failed) == ("completed", 6, 0)
    seen = list(stack.run_results.produced(run.id, with_input=True))
    assert [(row.custom_id, row.text) for row in seen] == [
        (row["custom_id"], row["text"]) for row in ROWS
    ]
    assert [int(str(row.metadata["day"])) for row in seen] == list(range(6))
    return True


@pytest.mark.parametrize("name", BODIES)
def test_a_file_is_the_body(stack: WorkerServices, client: TestClient, name: str) -> None:
    content, headers = BODIES[name]
    url = f"{RUNS}/embeddings?provider=local&name=mine&tags=a&tags=b&in_flight=3"
    response = client.post(url, content=content, headers=headers)
    assert has_all(stack, response)
    run = response.json()
    assert response.headers["location"] == f"{RUNS}/{run['id']}"
    assert (run["name"], run["tags"], run["in_flight"]) == ("mine", ["a", "b"], 3)


@pytest.mark.parametrize("name", FORMS)
def test_a_file_is_a_part_of_a_form(stack: WorkerServices, client: TestClient, name: str) -> None:
    fields = {"provider": "local", "name": "mine", "tags": '["a", "b"]', "in_flight": "3"}
    response = client.post(f"{RUNS}/embeddings", files={"file": FORMS[name]}, data=fields)
    assert has_all(stack, response)
    run = response.json()
    assert (run["name"], run["tags"], run["in_flight"]) == ("mine", ["a", "b"], 3)


def test_options_of_generations_come_with_a_file_too(
    stack: WorkerServices, client: TestClient
) -> None:
    schema = {"type": "object"}
    fields = {
        "provider": "demo",
        "template": "{text}!",
        "max_tokens": "50",
        "max_cost_usd": "0.5",
        "skip_bad": "true",
        "tags": "one",
        "json_schema": json.dumps(schema),
    }
    response = client.post(
        f"{RUNS}/generations", files={"file": ("a.csv", as_csv(), CSV)}, data=fields
    )
    # The demonstration costs nothing and knows no schema: what is wrong is said of the right field.
    assert response.status_code == 422
    del fields["json_schema"], fields["max_cost_usd"]
    response = client.post(
        f"{RUNS}/generations", files={"file": ("a.csv", as_csv(), CSV)}, data=fields
    )
    run = work(stack, UUID(response.json()["id"]))
    assert (run.succeeded, run.tags) == (6, ["one"])
    first = next(stack.run_results.produced(run.id, with_input=True))
    assert first.text == "Day 0 was quiet.!"


@pytest.mark.parametrize("way", ["body", "form"])
def test_the_end_of_an_uploads_run_is_told_to_its_own_address(
    stack: WorkerServices, client: TestClient, way: str
) -> None:
    def sent(webhook: str) -> Any:
        fields = {"provider": "local", "webhook": webhook}
        if way == "body":
            return client.post(
                f"{RUNS}/embeddings", params=fields, content=LINES, headers={"Content-Type": JSONL}
            )
        return client.post(f"{RUNS}/embeddings", files={"file": FORMS["jsonl"]}, data=fields)

    address = '{"url": "https://example.org/hooks"}'
    problem(sent(address), 409, "WRONG_STATE")  # without a secret to sign it with, as with JSON
    client.post("/api/v1/webhooks/secret")
    wrong = problem(sent('{"url": "https://127.0.0.1/hooks"}'), 422, "INVALID_INPUT")
    assert "loopback" in wrong["detail"]
    problem(sent('{"url": '), 422, "INVALID_INPUT")
    problem(sent("https://example.org/hooks"), 422, "INVALID_INPUT")
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    assert has_all(stack, sent(address))
    assert in_ledger(stack, "SELECT webhook FROM runs") == "https://example.org/hooks"
    assert in_ledger(stack, "SELECT count(*) FROM webhook_deliveries") == 1


def test_what_is_wrong_with_an_upload_is_said(stack: WorkerServices, client: TestClient) -> None:
    cases: list[tuple[Any, int, str, str]] = [
        (send(client, LINES, query="&oops=1"), 422, "INVALID_INPUT", "not valid"),
        (send(client, LINES, query="&name=a&name=b"), 422, "INVALID_INPUT", "more than once"),
        (send(client, LINES, query="&in_flight=x"), 422, "INVALID_INPUT", "not valid"),
        (send(client, b""), 422, "EMPTY_SOURCE", "no records"),
        (send(client, LINES, PARQUET), 422, "INVALID_INPUT", "not a whole Parquet file"),
        (send(client, b"{}\n"), 422, "BAD_INPUTS", "1 of 1 inputs"),
        (send(client, LINES, "application/json"), 422, "INVALID_INPUT", "provider"),
        (
            send(client, LINES, **{"Content-Encoding": "br"}),
            415,
            "UNSUPPORTED_MEDIA_TYPE",
            "gzip, zstd",
        ),
        (
            send(client, LINES, **{"Content-Encoding": "gzip"}),
            422,
            "INVALID_INPUT",
            "named as gzip data and is none",
        ),
        (client.post(f"{RUNS}/embeddings", json={}), 422, "INVALID_INPUT", "neither came"),
        (
            client.post(f"{RUNS}/embeddings", files={"other": ("a", b"x")}),
            422,
            "INVALID_INPUT",
            "field `file`",
        ),
    ]
    for response, status, code, why in cases:
        assert why in problem(response, status, code)["detail"], response.text
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0


# The library that reads forms leaves it to Python to close what has not come whole.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_form_that_is_cut_off_says_so(client: TestClient) -> None:
    refused = send(client, CUT_OFF, "multipart/form-data; boundary=b")
    assert "up to its last boundary" in problem(refused, 422, "INVALID_INPUT")["detail"]


def test_files_beyond_the_bounds_are_refused_and_nothing_is_kept(
    stack: WorkerServices, client: TestClient
) -> None:
    long = b'{"text": "%s"}\n' % (b"x" * 1_000)
    assert send(client, long * 200).status_code == 202, "larger than another body may be"
    too_long = send(client, long * 400)
    assert "MAX_UPLOAD_BYTES" in problem(too_long, 413, "CONTENT_TOO_LARGE")["detail"]
    chunked = client.post(
        f"{RUNS}/embeddings?provider=local",
        content=iter([long * 100] * 4),
        headers={"Content-Type": JSONL},
    )
    assert "MAX_UPLOAD_BYTES" in problem(chunked, 413, "CONTENT_TOO_LARGE")["detail"]
    form = client.post(f"{RUNS}/embeddings", files={"file": ("a.jsonl", long * 400)})
    assert "MAX_UPLOAD_BYTES" in problem(form, 413, "CONTENT_TOO_LARGE")["detail"]
    many = send(client, b'{"text": "x"}\n' * 501)
    assert "MAX_RUN_ITEMS" in problem(many, 422, "TOO_MANY_INPUTS")["detail"]
    for kind in (JSONL, CSV, "text/plain"):
        packed = gzip.compress(b"text\n" + b"\n" * 501)
        blank = send(client, packed, kind, **{"Content-Encoding": "gzip"})
        assert "blank" in problem(blank, 422, "INVALID_INPUT")["detail"], kind
    assert send(client, b"\n" * 500 + b'{"text": "x"}\n').status_code == 202
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 2


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gzip", "zstd"])
@pytest.mark.parametrize("kind", [JSONL, CSV, PARQUET, "text/plain"])
def test_a_few_bytes_that_unpack_to_many_are_read_so_far_and_no_further(
    stack: WorkerServices, client: TestClient, kind: str, pack: Any
) -> None:
    start = b"PAR1" if kind == PARQUET else b"text\n"
    bomb = pack(start + b" " * 5_000_000)
    assert len(bomb) < 100_000
    refused = send(
        client, bomb, kind, **{"Content-Encoding": "gzip" if pack is gzip.compress else "zstd"}
    )
    assert "MAX_UNPACKED_BYTES" in problem(refused, 422, "INVALID_INPUT")["detail"]
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


def test_a_file_that_takes_long_to_read_is_read_no_further(
    stack: WorkerServices, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack.settings, "upload_seconds", 0.01)
    monkeypatch.setattr(stack.settings, "max_run_items", 1_000_000)
    refused = send(client, b"text\n" + b"\n" * 290_000, CSV)
    assert "UPLOAD_SECONDS" in problem(refused, 422, "INVALID_INPUT")["detail"]
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


def test_a_dry_run_says_what_it_would_cost_and_keeps_nothing(
    stack: WorkerServices, client: TestClient
) -> None:
    found = send(client, LINES + b"{}\n", query="&dry_run=true")
    assert found.status_code == 200, found.text
    check = found.json()
    assert (check["items"], check["bad"], check["to_pay"]) == (7, 1, 6)
    assert check["faults"][0]["code"] == "MISSING_FIELD"
    assert "run_id" not in check
    body = {"items": ["a", "b", "a"], "provider": "demo"}
    check = client.post(f"{RUNS}/generations?dry_run=true", json=body).json()
    assert (check["items"], check["bad"], check["to_pay"], check["reused"]) == (3, 0, 2, 1)
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0


def test_a_run_is_started_once_a_key(stack: WorkerServices, client: TestClient) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = send(client, LINES, **key)
    again = send(client, LINES, **key)
    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    for other in (send(client, LINES * 2, **key), send(client, LINES, query="&name=b", **key)):
        problem(other, 409, "IDEMPOTENCY_CONFLICT")
    key = {"Idempotency-Key": str(uuid4())}
    body = {"items": ["x"], "provider": "local"}
    ids = [client.post(f"{RUNS}/embeddings", json=body, headers=key).json()["id"] for _ in "ab"]
    assert ids[0] == ids[1]
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 2
    assert in_ledger(stack, "SELECT count(*) FROM items") == 7


def test_of_two_requests_at_once_with_one_key_one_starts_its_run(
    stack: WorkerServices, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if both had looked before either had started.
    monkeypatch.setattr(type(stack.runs), "_made_before", lambda *_: None)
    key = {"Idempotency-Key": str(uuid4())}
    first, again = send(client, LINES, **key), send(client, LINES, **key)
    assert again.json()["id"] == first.json()["id"]
    problem(send(client, LINES[:-1], **key), 409, "IDEMPOTENCY_CONFLICT")
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 1
    assert in_ledger(stack, "SELECT count(*) FROM items") == 6


def test_uploads_of_one_user_are_bounded(stack: WorkerServices, client: TestClient) -> None:
    slots = client.app.state.uploads.slots  # type: ignore[attr-defined]
    me = UUID(client.get("/api/v1/auth/me").json()["id"])
    with slots.taken_by(me), slots.taken_by(me):
        refused = send(client, LINES)
        assert "MAX_UPLOADS_OF_ONE_USER" in problem(refused, 429, "TOO_MANY_TRANSFERS")["detail"]
        assert refused.headers["retry-after"] == "5"
        with slots.taken_by(uuid4()), slots.taken_by(uuid4()), serve(stack, "eve@x.org") as eve:
            eve.app.state.uploads = client.app.state.uploads  # type: ignore[attr-defined]
            assert "MAX_UPLOADS)" in problem(send(eve, LINES), 429, "TOO_MANY_TRANSFERS")["detail"]
    assert send(client, LINES).status_code == 202
