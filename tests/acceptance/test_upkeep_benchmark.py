"""The benchmark of upkeep runs, and prints what each thread costs."""

import os
import subprocess
import sys

from benchmarks.deployment import ROOT
from benchmarks.upkeep import POSTGRESQL, UPKEEP


def test_the_benchmark_of_upkeep_measures_every_thread() -> None:
    command = [sys.executable, "-m", "benchmarks.upkeep", "--queued", "20", "--running", "2"]
    done = subprocess.run(
        [*command, "--seconds", "1", "--rounds", "1", "--settle", "0"],
        cwd=ROOT,
        env=os.environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    names = {row[0] for row in rows if len(row) == 3}
    assert {*UPKEEP, POSTGRESQL} <= names, done.stdout
