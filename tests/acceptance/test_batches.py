"""A batch of OpenAI's client while workers and servers are killed: every line once."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from openai import OpenAI
from openai.types import Batch

from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.batches import chat, jsonl
from tests.doors import Door
from tests.processes import Process, wait_until
from tests.runs import in_ledger

LINES = int(os.environ.get("BATCH_LINES", "2000"))
KILLS = 5
FINAL = ("completed", "failed", "cancelled", "expired")
MODEL = "gpt-4o-mini"


class Client:
    """A client whose server is killed again and again."""

    def __init__(self, open_door: Callable[..., Door], key: str) -> None:
        self._open_door = open_door
        self._key = key
        self._door: Door | None = None
        self.looks: list[Batch] = []
        self.restart()

    def restart(self) -> None:
        """Kill the server, and start another one."""
        if self._door is not None:
            self._door.process.kill()
        self._door = self._open_door()
        self.sdk = OpenAI(base_url=f"{self._door.url}/openai/v1", api_key=self._key, timeout=60)

    def look(self, batch_id: str) -> Batch:
        """The batch, whose sums are right each time."""
        batch = self.sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        assert counts is not None
        done = counts.completed + counts.failed
        assert counts.total == LINES if batch.in_progress_at else counts.total == 0
        assert done == counts.total if batch.status in FINAL else done <= counts.total
        self.looks.append(batch)
        return batch

    def completed(self, batch_id: str) -> int:
        counts = self.look(batch_id).request_counts
        return 0 if counts is None else counts.completed

    def lines(self, file_id: str | None) -> list[dict[str, Any]]:
        if file_id is None:
            return []
        content = self.sdk.files.content(file_id).content
        return [json.loads(line) for line in content.splitlines()]


def ids(lines: Iterable[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def test_a_batch_outlives_kills_a_cancel_and_a_retry_with_every_line_once(
    runs: WorkerServices,
    simulator: SimulatorProcess,
    start_worker: Callable[..., Process],
    open_door: Callable[..., Door],
) -> None:
    simulator.set_latency(0.15)
    client = Client(open_door, runs.keys.create("ada@example.org", "Test"))
    content = jsonl(
        chat(f"id-{n}", f"Prompt {n}", model=MODEL, max_tokens=16) for n in range(LINES)
    )
    file = client.sdk.files.create(file=("in.jsonl", content), purpose="batch")
    worker = start_worker()
    batch_id = client.sdk.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    ).id

    def kill_both() -> None:
        nonlocal worker
        worker.kill()
        client.restart()
        worker = start_worker()

    kill_both()  # while its file is read, or soon after
    for share in (0.1, 0.25):
        wait_until(lambda at=share: client.completed(batch_id) >= at * LINES, f"{share:.0%}")  # type: ignore[misc]
        kill_both()
    wait_until(lambda: client.completed(batch_id) >= 0.4 * LINES, "40%")
    assert client.sdk.batches.cancel(batch_id).status in {"cancelling", "cancelled"}
    wait_until(lambda: client.look(batch_id).status == "cancelled", "the end of the cancel")
    cancelled = client.look(batch_id)
    answered = client.lines(cancelled.output_file_id)
    left = client.lines(cancelled.error_file_id)
    assert sorted(ids(answered) + ids(left)) == sorted(f"id-{n}" for n in range(LINES))
    assert {line["error"]["code"] for line in left} == {"batch_cancelled"}
    again = client.sdk.post(f"/batches/{batch_id}/retry", cast_to=Batch)
    assert again.status == "in_progress"
    for share in (0.6, 0.8):
        wait_until(lambda at=share: client.completed(batch_id) >= at * LINES, f"{share:.0%}")  # type: ignore[misc]
        kill_both()
    wait_until(lambda: client.look(batch_id).status == "completed", "its end")
    ended = client.look(batch_id)
    assert ended.error_file_id is None
    assert ids(client.lines(ended.output_file_id)) == [f"id-{n}" for n in range(LINES)]
    assert in_ledger(runs, "SELECT count(*) FROM runs") == 1
    # Only what a killed worker had in hand.
    twice = len(simulator.ledger(times=2))
    assert twice <= in_ledger(runs, "SELECT count(*) FROM attempts WHERE state = 'lost'")
    assert simulator.stats()["billed"] <= LINES + twice * KILLS
    assert any(look.status == "in_progress" for look in client.looks)
