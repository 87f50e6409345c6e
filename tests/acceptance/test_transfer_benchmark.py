"""The benchmark of transfers runs and prints what it promises; no time is judged here."""

import json
import os
from typing import Any

from tests.processes import run

SMALL = ["--items", "2000", "--upload-mb", "1"]


def test_transfers_of_runs() -> None:
    done = run(["-m", "benchmarks.run_transfer", *SMALL, "--json"], os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    files = [f"download {name}" for name in ("npy", "jsonl", "csv", "parquet", "answers")]
    assert list(said) == [*files, "last 1,000 bytes", "upload jsonl"]
    assert all(one["mb"] > 0 and one["s"] > 0 for one in said.values())
    assert said["download npy"]["mb"] > 2_000 * 256 * 4 / 1e6
    # Whatever the machine does meanwhile, no transfer is held in memory whole.
    assert all(one["grew"] < 200 for one in said.values())
