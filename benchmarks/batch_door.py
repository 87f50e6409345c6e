"""What the batch door costs beside the run that it stands on: the same embeddings by both.

Real servers, a simulated provider and one worker. Run `python -m benchmarks.batch_door --help`.
"""

import argparse
import io
import json
import time
from typing import Any

from rich.console import Console

from benchmarks.deployment import Deployment
from benchmarks.own_runs import one_worker
from promptstack.repositories.run_models import RunState
from promptstack.services.batches.views import BatchStatus
from promptstack.simulator.process import SimulatorProcess

MODEL = "text-embedding-3-small"
ENDED = (BatchStatus.COMPLETED, BatchStatus.FAILED)
UNDONE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
LOOK_SECONDS = 0.05
SECONDS = 1_200


def requests(count: int, name: str) -> bytes:
    """A file of requests, whose texts are no other file's."""
    lines = (
        {
            "custom_id": f"{name}-{n}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": MODEL, "input": f"{name}: the boat number {n} left the harbour."},
        }
        for n in range(count)
    )
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def by_run(deployed: Deployment, content: bytes, user_id: Any) -> float:
    """Seconds from the file until every item has its outcome. The index is waited for as well."""
    began = time.monotonic()
    run = deployed.stack.runs.embed(io.BytesIO(content), provider="openai", user_id=user_id)
    while run.state is RunState.RUNNING:
        time.sleep(LOOK_SECONDS)
        run = deployed.stack.runs.get(run.id)
    seconds = time.monotonic() - began
    deployed.stack.runs.wait(run.id, SECONDS)
    return seconds


def by_batch(deployed: Deployment, content: bytes, user_id: Any) -> tuple[float, float]:
    """The same seconds from the uploaded file on, and those until the batch was accepted."""
    stack = deployed.stack
    file = stack.files.create(
        io.BytesIO(content), filename="in.jsonl", purpose="batch", user_id=user_id
    )
    began = time.monotonic()
    batch = stack.batches.create(
        file.id, "/v1/embeddings", "24h", user_id=user_id, api_key_id=None, key_limits=None
    )
    accepted = time.monotonic() - began
    seconds = 0.0
    while batch.status not in ENDED:
        time.sleep(LOOK_SECONDS)
        batch = stack.batches.get(batch.id)
        if not seconds and batch.status not in UNDONE:
            seconds = time.monotonic() - began
    if batch.status is not BatchStatus.COMPLETED:
        raise SystemExit(f"The batch has failed: {batch.errors}")
    return seconds, accepted


def main() -> None:
    """Measure both by turns, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000, help="embeddings of each")
    parser.add_argument("--rounds", type=int, default=1, help="how often each is measured")
    asked = parser.parse_args()
    console = Console()
    with SimulatorProcess() as simulator, one_worker(simulator.url) as deployed:
        user_id = deployed.stack.users.create("bench@example.org").id
        by_batch(deployed, requests(2_000, "warm"), user_id)
        for number in range(asked.rounds):
            run = by_run(deployed, requests(asked.items, f"run-{number}"), user_id)
            batch, accepted = by_batch(deployed, requests(asked.items, f"batch-{number}"), user_id)
            console.print(
                f"{asked.items:,} embeddings: run {run:.1f} s, batch {batch:.1f} s "
                f"({batch / run:.2f} times); accepted in {accepted * 1000:.0f} ms"
            )


if __name__ == "__main__":
    main()
