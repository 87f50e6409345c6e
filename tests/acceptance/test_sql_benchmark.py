"""The benchmark of enqueueing in SQL runs and prints what it promises; no time is judged here."""

import json
import os
from typing import Any

from tests.processes import run

SMALL = ["--jobs", "4", "--rounds", "2", "--heard", "2"]


def test_enqueueing_in_sql_beside_celery() -> None:
    done = run(["-m", "benchmarks.sql_enqueue", *SMALL, "--json"], os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    ways = ["a commit each", "plain INSERT, commit", "one transaction", "one statement"]
    assert list(said["rounds"]) == list(said["ratios"]) == [*ways, "apply_async"]
    assert all(len(rounds) == 2 and min(rounds) > 0 for rounds in said["rounds"].values())
    assert len(said["heard_ms"]) == 2
