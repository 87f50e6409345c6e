"""The benchmark of generations runs, and prints a row for each program."""

import os
import subprocess
import sys

from benchmarks.deployment import ROOT
from benchmarks.generation_rivals import RIVALS
from benchmarks.generation_run import OURS


def test_the_benchmark_of_generations_measures_every_program() -> None:
    command = [sys.executable, "-m", "benchmarks.generation_run", "--items", "20"]
    command += ["--in-flight", "5", "--latency", "0.01", "--rounds", "1"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = {row[0].strip(): row[1:] for row in map(_cells, done.stdout.splitlines()) if row}
    assert {*RIVALS, OURS} <= rows.keys(), done.stdout
    for name in (*RIVALS, OURS):
        seconds, _, _, cpu = (float(cell.split()[0].replace(",", "")) for cell in rows[name][:4])
        assert seconds > 0, name
        assert cpu > 0, name
    assert f"{OURS}, CPU ms/item: worker " in done.stdout


def _cells(line: str) -> list[str]:
    return line.strip("│ ").split("│") if line.startswith("│") else []
