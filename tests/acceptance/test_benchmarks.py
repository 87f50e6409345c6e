"""Benchmarks run and print what they promise; no time is judged here."""

import json
import os
from typing import Any

from tests.processes import run

SMALL = ["--slots", "4", "--latency", "0.01", "--warm-up", "1"]


def printed(benchmark: str, *arguments: str) -> dict[str, Any]:
    """What a benchmark prints for programs."""
    command = ["-m", f"benchmarks.{benchmark}", *arguments, "--rounds", "1", "--json"]
    done = run(command, os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def measured(*work: str) -> dict[str, Any]:
    said = printed("single_jobs", *work, *SMALL)
    for median in said["medians"].values():
        assert median["jobs_a_second"] > 0
        assert median["peak_rss_mb"] > 10
    return said


def test_single_generations_beside_celery_and_dramatiq() -> None:
    said = measured("--jobs", "3")

    assert list(said["medians"]) == ["ours", "stock", "dramatiq"]
    assert all(median["calls_at_once"] > 0 for median in said["medians"].values())
    assert list(said["ratios"]) == ["ours/stock", "ours/dramatiq"]
    assert all("jobs_a_second" in ratios for ratios in said["ratios"].values())


def test_tiny_jobs_call_no_provider() -> None:
    said = measured("--tiny", "3", "--only", "ours")

    assert list(said["medians"]) == ["ours", "ours, embedding"]
    assert not any(median["calls_at_once"] for median in said["medians"].values())


def test_starts_of_commands_and_of_a_worker() -> None:
    said = printed("startup")

    commands = {"import celery", "import celery.app", "--help", "completion"}
    assert set(said) == commands | {"jobs list", "keys list", "doctor", "worker"}
    assert all(0 < it["lowest"] <= it["seconds"] <= it["highest"] for it in said.values())
