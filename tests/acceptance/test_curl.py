"""Another service's whole work with nothing but curl: jobs, streams, runs, search, webhooks."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.composition import PromptStack
from tests.doors import Door
from tests.processes import PATIENCE, Process, wait_until
from tests.small_server import Asked, small_server

API = "/api/v1"


class Curl:
    """A caller with a key."""

    def __init__(self, door: Door, key: str) -> None:
        self._door = door
        self._key = ("-H", f"Authorization: Bearer {key}")

    def post(self, path: str, body: Any, *arguments: str) -> tuple[int, Any]:
        sent = ("-H", "Content-Type: application/json", "-d", json.dumps(body))
        return self._door.curl(API + path, *self._key, *sent, *arguments)

    def get(self, path: str) -> Any:
        status, answer = self._door.curl(API + path, *self._key)
        assert status == 200, answer
        return answer

    def raw(self, path: str, *arguments: str) -> bytes:
        command = ["curl", "-sSN", "--fail-with-body", "--max-time", "60", *self._key, *arguments]
        return subprocess.run(
            [*command, self._door.url + API + path],
            capture_output=True,
            check=True,
            timeout=PATIENCE,
        ).stdout


@pytest.fixture
def curl(
    simulator: SimulatorProcess,
    stack: PromptStack,
    start_worker: Callable[..., Process],
    open_door: Callable[..., Door],
    monkeypatch: pytest.MonkeyPatch,
) -> Curl:
    monkeypatch.setenv("WEBHOOK_ALLOWED_HOSTS", "127.0.0.1")
    start_worker(WEBHOOK_ALLOWED_HOSTS="127.0.0.1")
    return Curl(open_door(), stack.keys.create("ada@example.org", "Ada"))


def test_jobs_are_handed_in_waited_for_and_handled_together(curl: Curl) -> None:
    status, job = curl.post("/generations?wait=60", {"prompt": "Say hello.", "tags": ["greeting"]})
    assert (status, job["state"]) == (200, "succeeded")
    key = ("-H", "Idempotency-Key: once")
    asked = {"prompt": "Once.", "tags": ["greeting"]}
    first, again = (curl.post("/generations", asked, *key)[1]["id"] for _ in range(2))
    assert first == again

    later = {"jobs": [{"prompt": f"Number {n}", "bulk": True, "tags": ["many"]} for n in range(50)]}
    status, accepted = curl.post("/jobs/bulk", later)
    assert (status, len(accepted["jobs"])) == (202, 50)
    counted = curl.get("/jobs?tag=many&count=true&limit=10")
    assert (counted["count"], counted["count_is_capped"]) == (50, False)
    next_page = curl.get(f"/jobs?tag=many&limit=10&after={counted['after']}")
    back = curl.get(f"/jobs?tag=many&limit=10&before={next_page['before']}")
    assert [one["id"] for one in back["jobs"]] == [one["id"] for one in counted["jobs"]]
    status, operation = curl.post("/operations", {"action": "cancel", "filter": {"tag": "many"}})
    assert status == 202
    path = f"/operations/{operation['id']}"
    wait_until(lambda: curl.get(path)["state"] == "succeeded", "the operation's end")
    states = {one["state"] for one in curl.get("/jobs?tag=many&limit=100")["jobs"]}
    assert states <= {"cancelled", "succeeded"}


def test_a_text_is_read_as_it_is_written(curl: Curl) -> None:
    _, job = curl.post("/generations", {"prompt": "Tell me a story.", "stream": True})
    said = curl.raw(f"/jobs/{job['id']}/events").decode()
    events = [
        dict(line.split(": ", 1) for line in part.splitlines()) for part in said.split("\n\n")
    ]
    texts = [json.loads(one["data"])["text"] for one in events if one.get("event") == "text"]
    [end] = [json.loads(one["data"]) for one in events if one.get("event") == "end"]
    assert "".join(texts) == end["result"]["text"]
    assert texts


def test_a_file_becomes_a_run_whose_results_are_files_and_are_found(
    curl: Curl, tmp_path: Path
) -> None:
    lines = [
        json.dumps({"text": f"The harbour, day {n}.", "custom_id": str(n)}) for n in range(300)
    ]
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(lines))
    subprocess.run(["gzip", str(file)], check=True, timeout=PATIENCE)
    sent = ("-H", "Content-Type: application/x-ndjson", "-H", "Content-Encoding: gzip")
    run = json.loads(
        curl.raw("/runs/embeddings?name=harbour&wait=60", *sent, "--data-binary", f"@{file}.gz")
    )
    assert (run["state"], run["total"], run["succeeded"]) == ("completed", 300, 300)
    results = curl.raw(f"/runs/{run['id']}/results/jsonl")
    assert [json.loads(line)["custom_id"] for line in results.splitlines()] == [
        str(n) for n in range(300)
    ]
    part = curl.raw(f"/runs/{run['id']}/results/jsonl", "-r", "1000-1999")
    assert part == results[1000:2000]
    status, found = curl.post(
        "/search", {"query": "The harbour, day 7.", "run_id": run["id"], "limit": 1}
    )
    assert (status, found["matches"][0]["text"]) == (200, "The harbour, day 7.")
    curl.raw(f"/runs/{run['id']}", "-X", "DELETE")
    assert curl.get("/runs")["runs"] == []


def test_the_end_of_a_job_is_told(curl: Curl) -> None:
    def answer(_: Asked) -> tuple[int, Any]:
        return 200, {}

    with small_server(answer) as receiver:
        told_of = {"url": receiver.url, "events": ["response.completed"]}
        status, endpoint = curl.post("/webhooks", told_of)
        assert status == 201, endpoint
        _, job = curl.post("/generations", {"prompt": "Say hello."})
        wait_until(lambda: receiver.asked, "the event")
    [told] = receiver.asked
    assert told.body["type"] == "response.completed"
    assert told.body["data"]["id"] == job["id"]
    Webhook(endpoint["secret"]).verify(json.dumps(told.body, separators=(",", ":")), told.headers)
