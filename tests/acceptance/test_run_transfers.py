"""Large outputs of runs: a worker that is killed while it writes, a reader that goes away."""

import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from moto.s3.models import S3Backend
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.http import serve
from tests.processes import Process, wait_until
from tests.runs import ended, in_ledger

RUNS = "/api/v1/runs"
ITEMS = 4_000
"""Of which the output has 12 MB: more than one part, and more than buffers of sockets take."""
URL = "s3://ours/out.jsonl"
LINES = b"".join(b'{"text":"Day %d was quiet."}\n' % number for number in range(ITEMS))
BUSY = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'
"""


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> Iterator[S3FileSystem]:
    """The storage as its owner sees it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "OBJECT_STORAGE_PLACES": "s3://ours",
        "OBJECT_STORAGE_ENDPOINT": f"http://{host}:{port}",
        "OBJECT_STORAGE_ACCESS_KEY": "key",
        "OBJECT_STORAGE_SECRET_KEY": "secret",
    }
    environment.update(variables)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    files = S3FileSystem(
        key="key",
        secret="secret",
        endpoint_url=variables["OBJECT_STORAGE_ENDPOINT"],
        use_listings_cache=False,
        skip_instance_cache=True,
    )
    files.mkdir("ours")
    yield files
    server.stop()


def embedded(stack: PromptStack, **query: str) -> UUID:
    """A run of so many items that its output is large."""
    with serve(stack) as client:
        answer = client.post(
            f"{RUNS}/embeddings",
            params={"provider": "local", **query},
            content=LINES,
            headers={"Content-Type": "application/x-ndjson"},
        )
    assert answer.status_code == 202, answer.text
    return UUID(answer.json()["id"])


def test_a_worker_that_is_killed_while_it_writes_an_output_leaves_it_whole_once(
    storage: S3FileSystem,
    stack: PromptStack,
    start_worker: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, may_go_on = threading.Event(), threading.Event()
    upload_part = S3Backend.upload_part

    def held(*given: Any, **named: Any) -> Any:
        began.set()
        assert may_go_on.wait(120)
        return upload_part(*given, **named)

    monkeypatch.setattr(S3Backend, "upload_part", held)
    run_id = embedded(stack, output_url=URL)
    worker = start_worker()
    assert began.wait(120), "no part of the output was sent"
    worker.send(signal.SIGKILL)
    worker.wait()
    may_go_on.set()
    assert not storage.exists(URL)
    start_worker()
    done = ended(stack, stack.runs.get(run_id))
    assert (done.state, done.error, done.succeeded) == ("completed", None, ITEMS)
    assert done.output_written_at is not None
    lines = storage.cat(URL).splitlines()
    assert [json.loads(line)["position"] for line in lines] == list(range(1, ITEMS + 1))


def test_a_reader_that_goes_away_frees_its_slot_and_its_connection(
    stack: PromptStack,
    start_worker: Callable[..., Process],
    open_door: Callable[..., Door],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MAX_DOWNLOADS_OF_ONE_USER", "1")
    run_id = embedded(stack)
    start_worker()
    ended(stack, stack.runs.get(run_id))
    door, key = open_door(), stack.keys.create("ada@example.org", "Test")
    place = urlsplit(door.url)
    path = f"{RUNS}/{run_id}/results/jsonl"
    with socket.create_connection((place.hostname, place.port)) as reader:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n"
        reader.sendall(request.encode())
        assert b" 200 " in reader.recv(1_000).splitlines()[0]
        headers = ["-H", f"Authorization: Bearer {key}"]
        assert door.curl(path, *headers)[0] == 429

    def is_free() -> bool:
        return door.status(f"{RUNS}/{run_id}/failures/jsonl", *headers) == 200

    wait_until(is_free, "the slot of the reader that went away")
    wait_until(lambda: in_ledger(stack, BUSY) == 0, "its connection")
