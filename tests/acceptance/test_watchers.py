"""Many watch a run by the events of a real server, which is restarted once under them."""

import json
import os
from typing import Any

from tests.processes import run

WATCHERS = int(os.environ.get("WATCHERS", "40"))
"""1,000 for the number that docs/benchmarks.md has."""


def test_no_end_is_lost_while_the_server_is_restarted() -> None:
    arguments = ["--watchers", str(WATCHERS), "--items", "5000"]
    done = run(["-m", "benchmarks.watchers", *arguments], os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert (said["ends"], said["run"]) == (WATCHERS, "completed")
    assert said["connected_again"] >= WATCHERS
    memory = said["megabytes"]
    assert max(memory.values()) - memory["idle"] < 200
