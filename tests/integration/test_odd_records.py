"""Odd records through a whole run and out again: kept exactly, or refused by line before it."""

import csv
import json
import os
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from services.export.results import export
from services.sources.records import MESSAGES
from tasks.composition import PromptStack
from tests.odd_json import Unkept, meant, records, same
from tests.runs import work

AT_ONCE = 20
EXAMPLES = max(1, int(os.environ.get("ODD_EXAMPLES", "300")) // AT_ONCE)
"""Of many records each; `ODD_EXAMPLES=20000` looks longer."""
odd = effort(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],  # to look for the smallest takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
lines = st.lists(records(), min_size=AT_ONCE, max_size=AT_ONCE)


@odd
@given(lines)
def test_a_line_is_kept_exactly_or_refused_before_anything_is_paid(
    stack: PromptStack, tmp_path: Path, given_lines: list[str]
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes("\n".join(given_lines).encode("utf-8", "surrogatepass"))
    run = stack.runs.generate(source, provider="demo", skip_bad=True)
    refused = {one.position: one for one in stack.run_results.failed(run.id)}
    work(stack, run.id)
    came = exported(stack, run.id, tmp_path)
    assert came.keys() | refused.keys() == set(range(1, AT_ONCE + 1))
    for position, line in enumerate(given_lines, 1):
        try:
            wanted = meant(line)
        except Unkept:
            assert position in refused, line
            assert refused[position].error, line
            continue
        if is_good(wanted):
            assert position in came or refused[position].code == "DUPLICATE_ID", line
        if position in came:
            kept = {name: part for name, part in wanted.items() if name != "text"}
            if kept.get("custom_id") is not None:
                del kept["custom_id"]
            assert all(same(metadata, kept) for metadata in came[position]), (line, came[position])


def is_good(record: dict[str, Any]) -> bool:
    """Whether a run must take it."""
    return (
        isinstance(record["text"], str)
        and bool(record["text"].strip())
        and "custom_id" not in record
        and not {"id", "prompt", MESSAGES} & record.keys()
    )


def exported(stack: PromptStack, run_id: UUID, folder: Path) -> dict[int, list[Any]]:
    """The metadata of each result, from every kind of output."""
    found = {one.position: [one.metadata] for one in stack.run_results.produced(run_id)}
    paths = [folder / name for name in ("out.jsonl", "out.csv", "out.parquet")]
    for path in paths:
        export(path, stack.run_results.produced(run_id), stack.run_results.failed(run_id))
    rows = list(map(json.loads, paths[0].read_bytes().splitlines()))
    with paths[1].open(newline="") as file:
        rows += list(csv.DictReader(file))
    rows += pq.read_table(paths[2]).to_pylist()
    for row in rows:
        metadata = row["metadata"]
        found[int(row["position"])].append(
            json.loads(metadata) if isinstance(metadata, str) else metadata
        )
    assert {len(metadata) for metadata in found.values()} <= {4}
    return found
