"""The benchmark of enqueueing runs and prints what it promises; no time is judged here."""

import json
import os
from typing import Any

from tests.processes import run

SMALL = ["--jobs", "4", "--rounds", "2", "--threads", "2"]


def test_enqueueing_beside_celery() -> None:
    done = run(["-m", "benchmarks.enqueue", *SMALL, "--json"], os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    ways = ["one by one", "2 threads", "500 at once"]
    assert list(said["rounds"]) == list(said["ratios"]) == ways
    for sides in said["rounds"].values():
        assert {name: len(rounds) for name, rounds in sides.items()} == {"ours": 2, "stock": 2}
        assert all(one["jobs_a_second"] > 0 for rounds in sides.values() for one in rounds)
    assert all(us > 0 for us in said["parts"].values())
