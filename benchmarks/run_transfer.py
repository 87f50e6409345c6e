"""How fast a run's source is uploaded and its results are downloaded, and what memory it takes.

Real servers and a real API process, whose memory is watched. Run
`python -m benchmarks.run_transfer --help`.
"""

import argparse
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.deployment import ROOT, environment
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.repositories.run_models import RunState
from promptstack.repositories.runs.new_items import NewItem
from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.runs.runs import Change
from promptstack.tasks.composition import PromptStack

BATCH = 10_000
TEXT = b"The harbour was quiet, and a boat left before the tide. " * 16
FORMATS = ("npy", "jsonl", "csv", "parquet")
ANSWERS = "answers"
"""JSON Lines of a run of generations, of about 1 kB each."""
MODEL = "benchmark"
RUNS = "/api/v1/runs"
PIECE = 1_048_576
ANSWERED = (
    """
INSERT INTO items (run_id, position, custom_id, content_hash, text, size, metadata)
SELECT :run, n, 'item-' || n, sha256(convert_to(:items || ' answer ' || n, 'UTF8')), 'x', 1,
       '{"lang": "en"}'
FROM generate_series(1, :items) n
""",
    "INSERT INTO outcomes (run_id, position) SELECT :run, n FROM generate_series(1, :items) n",
    """
INSERT INTO answers (provider, model, content_hash, result)
SELECT 'demo', :model, sha256(convert_to(:items || ' answer ' || n, 'UTF8')),
       jsonb_build_object('text', :text || n, 'model', :model, 'finish_reason', 'stop',
                          'input_tokens', 12, 'output_tokens', 250)
FROM generate_series(1, :items) n
""",
)
WARM_UP = 1_999
"""Items of a first transfer, after which all that is loaded once is loaded."""


class Memory:
    """The most memory that a process has while it is watched, beyond what it had before."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Yield a list that has the growth in MB at the end."""
        before, most, over = self._now(), [0.0], threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                most[0] = max(most[0], self._now() - before)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield most
        finally:
            over.set()
            watcher.join()

    def _now(self) -> float:
        return float(self._process.memory_info().rss) / 1e6


def main() -> int:
    """Measure all, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="results of the run")
    parser.add_argument("--dimensions", type=int, default=256, help="numbers of a vector")
    parser.add_argument("--upload-mb", type=int, default=200)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with ExitStack() as left:
            urls = left.enter_context(EmbeddedServers(folder / "state", durable=False))
            variables = {
                "DATABASE_URL": urls.database_url,
                "REDIS_URL": urls.redis_url,
                "ENVIRONMENT": "test",
            }
            with environment(variables):
                settings = load_settings(_env_file=None)
            with PromptStack.open(settings) as stack:
                upgrade(stack.ledger.engine)
                key = stack.keys.create("benchmark@example.org", "benchmark")
                user_id = stack.keys.authenticate(key).user_id
                small = run_of(stack, user_id, WARM_UP, given.dimensions)
                large = run_of(stack, user_id, given.items, given.dimensions)
                answers = (
                    answers_of(stack, user_id, WARM_UP),
                    answers_of(stack, user_id, given.items),
                )
            host, port, pid = _start(variables, left)
            runs = dict.fromkeys(FORMATS, (small, large)) | {ANSWERS: answers}
            found = _measure(Client(host, port, key), Memory(pid), folder, runs, given)
    finally:
        remove(folder)
    if given.json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    table = Table("what", "MB", "s", "MB/s", "memory grew by, MB")
    for name, one in found.items():
        table.add_row(name, *(f"{one[column]:,.1f}" for column in ("mb", "s", "mb_s", "grew")))
    Console().print(table)
    return 0


def _measure(
    client: "Client",
    memory: Memory,
    folder: Path,
    runs: dict[str, tuple[UUID, UUID]],
    given: argparse.Namespace,
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for name, (small, large) in runs.items():
        form = "jsonl" if name == ANSWERS else name
        client.download(small, form)
        with memory.watched() as grew:
            began = time.monotonic()
            size = client.download(large, form)
            seconds = time.monotonic() - began
        found[f"download {name}"] = _figures(size, seconds, grew[0])
    began = time.monotonic()
    client.download(runs["jsonl"][1], "jsonl", Range="bytes=-1000")
    found["last 1,000 bytes"] = _figures(1_000, time.monotonic() - began, 0.0)
    source = folder / "source.jsonl"
    _write_source(source, 1)
    client.upload(source)
    _write_source(source, given.upload_mb)
    with memory.watched() as grew:
        began = time.monotonic()
        client.upload(source)
        seconds = time.monotonic() - began
    found["upload jsonl"] = _figures(source.stat().st_size, seconds, grew[0])
    return found


def _figures(size: int, seconds: float, grew: float) -> dict[str, float]:
    return {"mb": size / 1e6, "s": seconds, "mb_s": size / 1e6 / seconds, "grew": grew}


class Client:
    """Sends and takes bytes, and keeps none."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._host = host
        self._port = port
        self._headers = {"Authorization": f"Bearer {key}"}

    def download(self, run_id: UUID, name: str, **headers: str) -> int:
        """Take a file. Returns its bytes."""
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.request(
            "GET", f"{RUNS}/{run_id}/results/{name}", headers={**self._headers, **headers}
        )
        response = connection.getresponse()
        if response.status not in {200, 206}:
            raise SystemExit(f"{name}: {response.status} {response.read()!r}")
        size, buffer = 0, bytearray(PIECE)
        while count := response.readinto(buffer):
            size += count
        connection.close()
        return size

    def upload(self, source: Path) -> None:
        """Start a run from a file."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=1_800)
        headers = {**self._headers, "Content-Type": "application/x-ndjson"}
        with source.open("rb") as file:
            connection.request(
                "POST", f"{RUNS}/generations?provider=demo", body=file, headers=headers
            )
        response = connection.getresponse()
        if response.status != 202:
            raise SystemExit(f"upload: {response.status} {response.read()!r}")
        response.read()
        connection.close()


def run_of(stack: PromptStack, user_id: UUID, items: int, dimensions: int) -> UUID:
    """A run of embeddings that is done, written to the ledger as workers would."""
    chance = np.random.default_rng(1)
    run_id = _new_run(stack, user_id, "embedding", "local")
    with stack.ledger.transaction() as unit:
        model = unit.embeddings.register_model("local", MODEL, dimensions, with_index=False)
    for at in range(1, items + 1, BATCH):
        positions = range(at, min(at + BATCH, items + 1))
        hashes = [hashlib.sha256(f"{items} {one}".encode()).digest() for one in positions]
        vectors = chance.standard_normal((len(hashes), dimensions), dtype=np.float32)
        with stack.ledger.transaction() as unit:
            rows = [
                NewItem(one, f"item-{one}", key, b"x", None, b'{"lang":"en"}')
                for one, key in zip(positions, hashes, strict=True)
            ]
            unit.items.add(run_id, rows)
            unit.outcomes.end(run_id, [Ended(one) for one in positions])
            unit.embeddings.store(model, hashes, vectors)
    _end(stack, run_id, items)
    return run_id


def answers_of(stack: PromptStack, user_id: UUID, items: int) -> UUID:
    """A run of generations that is done."""
    run_id = _new_run(stack, user_id, "generation", "demo")
    given = {"run": run_id, "items": items, "model": MODEL, "text": TEXT.decode()}
    with stack.ledger.transaction() as unit:
        for statement in ANSWERED:
            unit.session.execute(text(statement), given)
    _end(stack, run_id, items)
    return run_id


def _new_run(stack: PromptStack, user_id: UUID, kind: str, provider: str) -> UUID:
    how = {"parameters": {}, "in_flight": 1, "max_retries": 1, "user_id": user_id}
    what = {"kind": kind, "name": "", "provider": provider, "model": MODEL}
    with stack.ledger.transaction() as unit:
        return unit.runs.add(lifetime=86_400.0, collection_id=user_id, **what, **how).id


def _end(stack: PromptStack, run_id: UUID, items: int) -> None:
    with stack.ledger.transaction() as unit:
        unit.runs.touch(run_id, items, items)
        unit.runs.start(run_id)
        unit.runs.change(run_id, Change(succeeded=items))
        unit.runs.finish(run_id, RunState.COMPLETED)


def _write_source(path: Path, megabytes: int) -> None:
    with path.open("wb") as file:
        for number in range(megabytes * 1_000_000 // (len(TEXT) + 40)):
            file.write(b'{"custom_id":"%d","prompt":"%s %d"}\n' % (number, TEXT, number))


def _start(variables: dict[str, str], left: ExitStack) -> tuple[str, int, int]:
    process = subprocess.Popen(
        [sys.executable, "-m", "promptstack.api.http", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
    )
    left.callback(process.wait)
    left.callback(process.terminate)
    said = process.stdout.readline() if process.stdout else b""
    url = urlsplit(json.loads(said)["url"])
    return str(url.hostname), url.port or 0, process.pid


if __name__ == "__main__":
    sys.exit(main())
