"""Sources and outputs of runs in object storage, on a server that speaks S3's protocol."""

import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem
from s3fs.core import S3File

from promptstack.config.settings import Settings, load_settings
from promptstack.services.errors import InvalidInput
from promptstack.services.objects.storage import ObjectStorage, StorageOptions
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.runs import in_ledger, work

RUNS = "/api/v1/runs"
ROWS = [{"custom_id": f"id-{n}", "text": f"Day {n} was quiet."} for n in range(6)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def files(endpoint: str) -> S3FileSystem:
    """The storage as its owner sees it, with the buckets `ours` and `theirs`."""
    files = S3FileSystem(
        key="key",
        secret="secret",
        endpoint_url=endpoint,
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    for bucket in ("ours", "theirs"):
        if not files.exists(bucket):
            files.mkdir(bucket)
        for found in files.find(bucket):
            files.rm(found)
    return files


@pytest.fixture
def settings(
    environment: dict[str, str], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    monkeypatch.setenv("OBJECT_STORAGE_PLACES", "s3://ours/runs, s3://ours/of/{user_id}/")
    monkeypatch.setenv("OBJECT_STORAGE_ENDPOINT", endpoint)
    monkeypatch.setenv("OBJECT_STORAGE_ACCESS_KEY", "key")
    monkeypatch.setenv("OBJECT_STORAGE_SECRET_KEY", "secret")
    return load_settings(_env_file=None)


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as client:
        yield client


def send(client: TestClient, kind: str = "embeddings", **body: Any) -> Any:
    provider = "local" if kind == "embeddings" else "demo"
    return client.post(f"{RUNS}/{kind}", json={"provider": provider, **body})


def in_parquet() -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "make"), [("in.jsonl", lambda: LINES), ("in.parquet", in_parquet)], ids=["jsonl", "pq"]
)
def test_a_source_is_read_from_object_storage(
    stack: WorkerServices,
    client: TestClient,
    files: S3FileSystem,
    name: str,
    make: Callable[[], bytes],
) -> None:
    files.pipe(f"ours/runs/{name}", make())
    url = f"s3://ours/runs/{name}"
    check = client.post(
        f"{RUNS}/embeddings?dry_run=1", json={"provider": "local", "source_url": url}
    )
    assert (check.status_code, check.json()["items"]) == (200, 6), check.text
    accepted = send(client, source_url=url)
    assert accepted.status_code == 202, accepted.text
    run = work(stack, UUID(accepted.json()["id"]))
    assert (run.state, run.succeeded) == ("completed", 6)


URLS = {
    "another-bucket": "s3://theirs/in.jsonl",
    "another-folder": "s3://ours/other/in.jsonl",
    "a-longer-name": "s3://ours/runs-of-others/in.jsonl",
    "up": "s3://ours/runs/../other/in.jsonl",
    "doubled": "s3://ours/runs//in.jsonl",
    "a-pattern": "s3://ours/runs/*.jsonl",
    "a-version": "s3://ours/runs/in.jsonl?versionId=1",
    "a-user": "s3://key:secret@ours/runs/in.jsonl",
    "a-port": "s3://ours:80/runs/in.jsonl",
    "another-user": "s3://ours/of/01900000-0000-7000-8000-000000000000/in.jsonl",
    "a-file": "file:///etc/passwd",
    "a-path": "/etc/passwd",
    "http": "http://169.254.169.254/latest/meta-data",
    "chained": "s3://ours/runs/in.jsonl::file:///etc/passwd",
    "nothing": "s3://",
}


@pytest.mark.parametrize("name", URLS)
def test_no_other_place_is_read_or_written(
    stack: WorkerServices, client: TestClient, files: S3FileSystem, name: str
) -> None:
    for field in ("source_url", "output_url"):
        given: dict[str, Any] = {"items": ["x"]} if field == "output_url" else {}
        given[field] = URLS[name]
        problem(send(client, **given), 422, "INVALID_INPUT")
    assert in_ledger(stack, "SELECT count(*) FROM runs") == 0


def test_a_place_may_be_a_users_own(
    stack: WorkerServices, client: TestClient, files: S3FileSystem
) -> None:
    me = client.get("/api/v1/auth/me").json()["id"]
    files.pipe(f"ours/of/{me}/in.jsonl", LINES)
    assert send(client, source_url=f"s3://ours/of/{me}/in.jsonl").status_code == 202
    with serve(stack, "eve@example.org") as eve:
        problem(send(eve, source_url=f"s3://ours/of/{me}/in.jsonl"), 422, "INVALID_INPUT")


def test_what_is_wrong_with_a_url_is_said(
    stack: WorkerServices, client: TestClient, files: S3FileSystem
) -> None:
    missing = send(client, source_url="s3://ours/runs/missing.jsonl")
    assert "not there" in problem(missing, 422, "INVALID_INPUT")["detail"]
    two = send(client, items=["x"], source_url="s3://ours/runs/in.jsonl")
    assert "one source" in problem(two, 422, "INVALID_INPUT")["detail"]
    for name in ("out", "out.xlsx", "out.jsonl.gz"):
        told = send(client, items=["x"], output_url=f"s3://ours/runs/{name}")
        assert "tells no format" in problem(told, 422, "INVALID_INPUT")["detail"]
    told = send(client, "generations", items=["x"], output_url="s3://ours/runs/out.npy")
    assert "no vectors" in problem(told, 422, "INVALID_INPUT")["detail"]
    with pytest.raises(InvalidInput, match="OBJECT_STORAGE_PLACES"):
        ObjectStorage(StorageOptions()).check("s3://ours/runs/in.jsonl", None)


def test_an_output_is_written_when_the_run_has_ended(
    stack: WorkerServices, client: TestClient, files: S3FileSystem
) -> None:
    url = "s3://ours/runs/out.npy"
    run_id = UUID(send(client, items=["a", "b"], output_url=url).json()["id"])
    run = work(stack, run_id)
    assert (run.state, run.output_url, run.error) == ("completed", url, None)
    assert run.output_written_at is not None
    assert np.load(io.BytesIO(files.cat(url))).shape == (2, 256)
    url = "s3://ours/runs/out.jsonl"
    items = [{"custom_id": "good", "prompt": "Say hello."}, {"custom_id": "bad"}]
    body = {"items": items, "skip_bad": True, "output_url": url}
    work(stack, UUID(send(client, "generations", **body).json()["id"]))
    assert json.loads(files.cat(url))["custom_id"] == "good"
    assert json.loads(files.cat("s3://ours/runs/out.errors.jsonl"))["custom_id"] == "bad"


def test_what_a_cancelled_run_has_produced_is_written_too(
    stack: WorkerServices, client: TestClient, files: S3FileSystem
) -> None:
    url = "s3://ours/runs/cut.jsonl"
    items = [{"prompt": "Say a."}, {"prompt": "Say b."}]
    run = send(client, "generations", items=items, output_url=url).json()
    assert not files.exists(url)
    client.post(f"{RUNS}/{run['id']}/cancel")
    ended = work(stack, UUID(run["id"]))
    assert ended.state == "cancelled"
    assert files.cat(url) == b""
    client.post(f"{RUNS}/{run['id']}/resume")
    assert work(stack, UUID(run["id"])).state == "completed"
    assert files.cat(url).count(b"\n") == 2


def test_an_output_that_breaks_off_is_not_there_and_is_written_by_the_next_try(
    stack: WorkerServices,
    client: TestClient,
    files: S3FileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "s3://ours/runs/broken.jsonl"
    run_id = UUID(send(client, items=["a", "b"], output_url=url).json()["id"])
    write, seen = S3File.write, []

    def break_off(file: S3File, data: bytes) -> int:
        seen.append(files.exists(url))
        if len(seen) == 1:
            write(file, data[:10])
            raise OSError("the network is gone")
        return int(write(file, data))

    monkeypatch.setattr(S3File, "write", break_off)
    run = work(stack, run_id)
    assert (run.state, run.error) == ("completed", None)
    assert len(seen) > 1
    assert not any(seen)
    assert files.cat(url).count(b"\n") == 2


def test_a_run_whose_output_can_not_be_written_is_completed_and_says_so(
    stack: WorkerServices,
    client: TestClient,
    files: S3FileSystem,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = "s3://ours/runs/never.jsonl"
    run_id = UUID(send(client, items=["a", "b"], output_url=url).json()["id"])

    def fail(file: S3File, data: bytes) -> int:
        raise OSError("the network is gone")

    monkeypatch.setattr(S3File, "write", fail)
    run = work(stack, run_id)
    assert (run.state, run.error_code, run.succeeded) == ("completed", "OUTPUT_NOT_WRITTEN", 2)
    assert run.output_written_at is None
    assert "never.jsonl can't be written" in str(run.error)
    assert not files.exists(url)
