"""Results and failures of runs as files: in each format, while a run goes on, and by ranges."""

import csv
import io
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.runs.runs import Change
from promptstack.services.errors import WrongState
from promptstack.services.export.items import ExportFormat
from promptstack.services.runs import downloads
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.processes import PATIENCE
from tests.runs import work

RUNS = "/api/v1/runs"
TEXTS = [f"The harbour was quiet on day {number}." for number in range(20)]
FORMATS = ("jsonl", "csv", "parquet", "npy")


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def embedded(stack: WorkerServices, client: TestClient, texts: list[str] = TEXTS) -> UUID:
    """A run whose items are all done."""
    items = [{"custom_id": f"id-{n}", "text": one, "day": n} for n, one in enumerate(texts)]
    body = {"items": items, "provider": "local"}
    run_id = UUID(client.post(f"{RUNS}/embeddings", json=body).json()["id"])
    work(stack, run_id)
    return run_id


def file(client: TestClient, run_id: UUID, path: str, **headers: str) -> Any:
    return client.get(f"{RUNS}/{run_id}/{path}", headers=headers)


def positions(content: bytes) -> list[int]:
    return [json.loads(line)["position"] for line in content.splitlines()]


def going_on(stack: WorkerServices, client: TestClient, done: list[int]) -> UUID:
    """A run of ten items, of which those at these positions have ended."""
    run_id = embedded(stack, client, TEXTS[:10])
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM outcomes"))
        unit.outcomes.end(run_id, [Ended(position) for position in done])
        unit.runs.change(run_id, Change(succeeded=len(done) - 10))
        unit.runs.start(run_id)
    return run_id


def test_every_format_has_the_same_results(stack: WorkerServices, client: TestClient) -> None:
    run_id = embedded(stack, client)
    answers = {name: file(client, run_id, f"results/{name}") for name in FORMATS}
    for name, answer in answers.items():
        assert answer.status_code == 200, answer.text
        assert "x-incomplete" not in answer.headers
        assert answer.headers["accept-ranges"] == "bytes"
        assert f'filename="{run_id}.results.{name}"' in answer.headers["content-disposition"]
    lines = [json.loads(line) for line in answers["jsonl"].content.splitlines()]
    vectors = np.array([line["vector"] for line in lines], np.float32)
    array = np.load(io.BytesIO(answers["npy"].content))
    assert array.shape == (20, 256)
    assert np.array_equal(array, vectors)
    table = pq.read_table(io.BytesIO(answers["parquet"].content))
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    rows = list(csv.DictReader(io.StringIO(answers["csv"].text)))
    assert [row["custom_id"] for row in rows] == [line["custom_id"] for line in lines]
    assert [json.loads(row["metadata"]) for row in rows] == [{"day": n} for n in range(20)]
    assert answers["npy"].headers["content-length"] == str(len(answers["npy"].content))


def test_answers_and_failures_are_files_too(stack: WorkerServices, client: TestClient) -> None:
    items = [{"custom_id": "good", "prompt": "Say hello."}, {"custom_id": "bad"}]
    body = {"items": items, "provider": "demo", "skip_bad": True}
    run_id = UUID(client.post(f"{RUNS}/generations", json=body).json()["id"])
    work(stack, run_id)
    [answer] = csv.DictReader(io.StringIO(file(client, run_id, "results/csv?with_input=1").text))
    assert (answer["custom_id"], answer["text"]) == ("good", "Say hello.")
    assert "hello" in answer["answer"]
    [line] = file(client, run_id, "failures/jsonl").content.splitlines()
    assert json.loads(line)["custom_id"] == "bad"
    [row] = csv.DictReader(io.StringIO(file(client, run_id, "failures/csv").text))
    assert (row["custom_id"], row["code"]) == ("bad", "MISSING_FIELD")
    table = pq.read_table(io.BytesIO(file(client, run_id, "failures/parquet").content))
    assert table["code"].to_pylist() == ["MISSING_FIELD"]
    for path in ("failures/npy", "results/npy"):
        assert problem(file(client, run_id, path), 422, "INVALID_INPUT")


@pytest.mark.parametrize("name", FORMATS)
def test_a_part_is_the_same_bytes_each_time(
    stack: WorkerServices, client: TestClient, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MARK_BYTES", 5_000)
    monkeypatch.setattr("promptstack.services.runs.results.FIRST_PAGE", 2)
    run_id = embedded(stack, client)
    # Before anybody has read the file to its end, its length must be found out.
    ending = file(client, run_id, f"results/{name}", Range="bytes=-7")
    assert ending.status_code == 206, ending.text
    whole = file(client, run_id, f"results/{name}")
    length, tag = len(whole.content), whole.headers["etag"]
    assert ending.content == whole.content[-7:]
    assert file(client, run_id, f"results/{name}").headers["content-length"] == str(length)
    chance = random.Random(7)
    for _ in range(12):
        first = chance.randrange(length)
        last = chance.randrange(first, length + 100)
        given = {"Range": f"bytes={first}-{last}", "If-Range": tag}
        part = file(client, run_id, f"results/{name}", **given)
        assert part.status_code == 206
        end = min(last + 1, length)
        assert part.headers["content-range"] == f"bytes {first}-{end - 1}/{length}"
        assert part.content == whole.content[first:end]
    rest = file(client, run_id, f"results/{name}", Range=f"bytes={length - 10}-")
    assert rest.content == whole.content[-10:]


def test_ranges_that_are_not_there_and_files_that_have_changed(
    stack: WorkerServices, client: TestClient
) -> None:
    run_id = embedded(stack, client)
    whole = file(client, run_id, "results/jsonl")
    length, tag = len(whole.content), whole.headers["etag"]
    beyond = file(client, run_id, "results/jsonl", Range=f"bytes={length}-")
    assert problem(beyond, 416, "RANGE_NOT_SATISFIABLE")
    assert beyond.headers["content-range"] == f"bytes */{length}"
    for odd in ("bytes=5-2", "bytes=-", "bytes=0-1,4-5", "lines=1-2", "bytes=x-1"):
        ignored = file(client, run_id, "results/jsonl", Range=odd)
        assert (ignored.status_code, len(ignored.content)) == (200, length), odd
    assert file(client, run_id, "results/jsonl", **{"If-None-Match": tag}).status_code == 304
    with stack.ledger.transaction() as unit:  # as a call does that was under way at the end
        unit.runs.change(run_id, Change(calls=1))
    other = file(client, run_id, "results/jsonl", Range="bytes=0-9", **{"If-Range": tag})
    assert (other.status_code, len(other.content)) == (200, length)
    assert other.headers["etag"] != tag


def test_while_a_run_goes_on_nothing_is_missed_from_x_next_after_on(
    stack: WorkerServices, client: TestClient
) -> None:
    run_id = going_on(stack, client, [1, 2, 3, 6, 8])
    now = file(client, run_id, "results/jsonl", Range="bytes=0-9")
    assert (now.status_code, now.headers["x-incomplete"]) == (200, "true")
    assert "etag" not in now.headers
    assert positions(now.content) == [1, 2, 3, 6, 8]
    assert now.headers["x-next-after"] == "3"
    settled = file(client, run_id, "results/jsonl?settled=true")
    assert positions(settled.content) == [1, 2, 3]
    array = np.load(io.BytesIO(file(client, run_id, "results/npy").content))
    assert array.shape == (3, 256)
    with stack.ledger.transaction() as unit:
        unit.outcomes.end(run_id, [Ended(position) for position in (4, 5)])
    more = file(client, run_id, "results/jsonl?settled=true&after=3")
    assert positions(more.content) == [4, 5, 6]
    assert more.headers["x-next-after"] == "6"
    work(stack, run_id)
    last = file(client, run_id, "results/jsonl?settled=true&after=6")
    assert positions(last.content) == [7, 8, 9, 10]
    assert "x-incomplete" not in last.headers


def test_a_run_that_is_changed_while_it_is_read_breaks_the_download_off(
    stack: WorkerServices, client: TestClient
) -> None:
    run_id = embedded(stack, client)
    opened = stack.run_downloads.open(run_id, None, downloads.Wanted(ExportFormat.JSONL))
    blocks = opened.blocks()
    with stack.ledger.transaction() as unit:
        unit.runs.start(run_id)
    with pytest.raises(WrongState, match="changed while it was read"):
        list(blocks)


def test_another_users_files_are_not_there(stack: WorkerServices, client: TestClient) -> None:
    run_id = embedded(stack, client)
    with serve(stack, email="eve@example.org") as other:
        assert problem(file(other, run_id, "results/jsonl"), 404, "NOT_FOUND")
        assert problem(file(other, run_id, "failures/csv"), 404, "NOT_FOUND")


def test_others_are_answered_while_the_length_of_a_long_file_is_found_out(
    stack: WorkerServices, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = embedded(stack, client)
    client.app.state.downloads.makers.total_tokens = 1  # type: ignore[attr-defined]
    begun, answered = Event(), Event()
    read: list[float] = []

    def long_file(after: int, is_continued: bool) -> Iterator[tuple[int, bytes]]:
        given = 0
        while given < len(read) or not (answered.is_set() or len(read) == 2_000):
            if given == len(read):
                time.sleep(0.01)
                read.append(time.monotonic())
            given += 1
            begun.set()
            yield 0, b"x" * 100

    monkeypatch.setattr(downloads.RunDownloads, "_reader", lambda *_: (long_file, None))
    with ThreadPoolExecutor(1) as thread:
        part = thread.submit(file, client, run_id, "results/jsonl", Range="bytes=-10")
        assert begun.wait(30)
        problem(client.get(f"{RUNS}/{UUID(int=1)}/results/jsonl"), 404, "NOT_FOUND")
        read_until_then = len(read)
        answered.set()
        assert read_until_then < 2_000
        assert part.result(PATIENCE).content == b"x" * 10


def test_downloads_of_one_user_are_bounded(stack: WorkerServices, client: TestClient) -> None:
    run_id = embedded(stack, client)
    slots = client.app.state.downloads.slots  # type: ignore[attr-defined]
    me = client.get("/api/v1/auth/me").json()["id"]
    held = [slots.taken_by(UUID(me)) for _ in range(4)]
    for one in held:
        one.__enter__()
    refused = file(client, run_id, "results/jsonl")
    assert "MAX_DOWNLOADS_OF_ONE_USER" in problem(refused, 429, "TOO_MANY_TRANSFERS")["detail"]
    assert refused.headers["retry-after"] == "5"
    held[0].__exit__(None, None, None)
    assert file(client, run_id, "results/jsonl").status_code == 200
