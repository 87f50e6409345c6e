"""The benchmark of embeddings runs, and prints a row for each program."""

import os
import subprocess
import sys

from benchmarks.deployment import ROOT
from benchmarks.embedding_rivals import RIVALS
from benchmarks.embedding_run import OURS


def test_the_benchmark_of_embeddings_measures_every_program() -> None:
    command = [sys.executable, "-m", "benchmarks.embedding_run", "--texts", "60"]
    command += ["--script-texts", "20", "--rounds", "1", "--dimensions", "3072"]
    done = subprocess.run(
        [*command, "--who", *RIVALS],
        cwd=ROOT,
        env=os.environ,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = {row[0].strip(): row[1:] for row in map(_cells, done.stdout.splitlines()) if row}
    assert {*RIVALS, OURS} <= rows.keys(), done.stdout
    for name in (*RIVALS, OURS):
        _, vectors, rate, ratio, cpu, *_, peak, refused = (cell.strip() for cell in rows[name])
        assert vectors == ("20" if name == "script" else "60")
        assert float(rate.replace(",", "")) > 0, name
        assert (ratio == "") == (name == OURS)
        # Processor time comes in ticks of 10 ms: that of a rival's 60 texts may be none.
        assert float(cpu.replace(",", "")) > 0 or name != OURS, name
        assert float(peak.replace(",", "")) > 50, name
        assert refused == "0"


def _cells(line: str) -> list[str]:
    return line.strip("│ ").split("│") if line.startswith("│") else []
