"""Runs of growing size on the local provider, and whether speed and memory stay as they are.

Run `python -m benchmarks.curve --help`.
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from benchmarks.own_runs import OwnRun, Sample, measure, one_worker
from promptstack.services.runs.service import RunService
from promptstack.services.runs.views import RunView

SHORTEST_SECONDS = 2.0
COLUMNS = (
    "items", "accepted/s", "items/s", "items/s at 10%", "items/s at the end", "worker MB at 10%",
    "at 100%", "database MB",
)  # fmt: skip


def main() -> None:
    """Run each size on servers of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    table = Table(*COLUMNS)
    for size in given.sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "items.jsonl"
            with path.open("w") as file:
                for number in range(size):
                    line = {"custom_id": f"id-{number}", "text": f"Short text number {number}."}
                    file.write(json.dumps(line) + "\n")
            # Nobody is called there: the provider is local.
            with one_worker("http://127.0.0.1:9/v1") as deployed:
                submit = partial(embed, path)
                done = measure(deployed, submit, until_end=False)
                with deployed.stack.ledger.transaction() as unit:
                    bytes_ = unit.session.scalar(
                        text("SELECT pg_database_size(current_database())")
                    )
        table.add_row(*row(done, size, bytes_ or 0))
    Console(width=140).print(table)


def embed(path: Path, runs: RunService) -> RunView:
    """Embed the lines of a file."""
    return runs.embed(path, provider="local")


def row(done: OwnRun, size: int, database: int) -> list[str]:
    """The figures of one size."""
    first = [it for it in done.samples if it.done <= 0.1 * size] or done.samples[:1]
    begin = next((it for it in done.samples if it.done > 0), done.samples[0])
    end = [it for it in done.samples if it.done >= 0.9 * size]
    return [
        f"{size:,}",
        f"{size / done.accept_seconds:,.0f}",
        f"{size / done.seconds:,.0f}",
        rate(begin, first[-1]),
        rate(end[0], end[-1]),
        f"{first[-1].rss / 1e6:,.0f}",
        f"{done.samples[-1].rss / 1e6:,.0f}",
        f"{database / 1e6:,.0f}",
    ]


def rate(first: Sample, last: Sample) -> str:
    """Items a second between two looks, where they are far enough apart to tell."""
    passed = last.seconds - first.seconds
    return f"{(last.done - first.done) / passed:,.0f}" if passed > SHORTEST_SECONDS else "-"


if __name__ == "__main__":
    main()
