"""Benchmarks run and print what they promise; no time is judged here."""

import json
import os
from typing import Any

from tests.processes import run

SMALL = ["--rounds", "1", "--slots", "4", "--latency", "0.01", "--warm-up", "1", "--json"]


def measured(work: list[str]) -> dict[str, Any]:
    done = run(["-m", "benchmarks.single_jobs", *work, *SMALL], os.environ, seconds=300.0)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    for median in said["medians"].values():
        assert median["jobs_a_second"] > 0
        assert median["peak_rss_mb"] > 10
    return said


def test_single_generations_beside_celery_and_dramatiq() -> None:
    said = measured(["--jobs", "3"])

    assert list(said["medians"]) == ["ours", "stock", "dramatiq"]
    assert all(median["calls_at_once"] > 0 for median in said["medians"].values())
    assert list(said["ratios"]) == ["ours/stock", "ours/dramatiq"]
    assert all("jobs_a_second" in ratios for ratios in said["ratios"].values())


def test_tiny_jobs_call_no_provider() -> None:
    said = measured(["--tiny", "3", "--only", "ours"])

    assert list(said["medians"]) == ["ours", "ours, embedding"]
    assert not any(median["calls_at_once"] for median in said["medians"].values())
