"""How fast the outputs of a run are read as lines of a batch, beside the run's own JSON Lines.

A real PostgreSQL; no HTTP. Run `python -m benchmarks.batch_lines --help`.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from uuid import UUID

from rich.console import Console
from rich.table import Table

from benchmarks.deployment import environment
from benchmarks.run_transfer import answers_of, run_of
from promptstack.config.settings import load_settings
from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.migrations import upgrade
from promptstack.services.batches.forms import AnsweredLine, Written
from promptstack.services.export.items import ExportFormat
from promptstack.services.openai.batch_lines import CHAT, EMBEDDINGS, OpenAILines
from promptstack.services.runs.downloads import Wanted
from promptstack.services.runs.results import Span
from promptstack.tasks.composition import PromptStack

TURNS = 3


def main() -> int:
    """Measure all, and print a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with ExitStack() as left:
            urls = left.enter_context(EmbeddedServers(folder / "state", durable=False))
            variables = {
                "DATABASE_URL": urls.database_url,
                "REDIS_URL": urls.redis_url,
                "ENVIRONMENT": "test",
            }
            with environment(variables):
                settings = load_settings(_env_file=None)
            with PromptStack.open(settings) as stack:
                upgrade(stack.ledger.engine)
                key = stack.keys.create("benchmark@example.org", "benchmark")
                user_id = stack.keys.authenticate(key).user_id
                # Of each an own number of items, as it is part of the contents' hashes.
                runs = {
                    "256 numbers": run_of(stack, user_id, given.items, 256),
                    "1,536 numbers": run_of(stack, user_id, given.items + 1, 1_536),
                    "answers": answers_of(stack, user_id, given.items),
                }
                rows = [row for name, one in runs.items() for row in _measure(stack, name, one)]
    finally:
        remove(folder)
    _show(rows, as_json=given.json)
    return 0


def _measure(stack: PromptStack, name: str, run_id: UUID) -> list[dict[str, str | float]]:
    """Read one run in each way, in turns."""
    ways: dict[str, Callable[[], int]] = {
        "own JSON Lines": lambda: _size(
            stack.run_downloads.open(run_id, None, Wanted(ExportFormat.JSONL)).blocks()
        ),
        "lines, unwritten": lambda: sum(
            len(block) for block in stack.run_results.lines(run_id, Span())
        ),
    }
    if name == "answers":
        ways["batch: chat"] = lambda: _size(_written(stack, run_id, CHAT, "float"))
    else:
        for form in ("float", "base64"):
            ways[f"batch: {form}"] = lambda form=form: _size(  # type: ignore[misc]
                _written(stack, run_id, EMBEDDINGS, form)
            )
    taken: dict[str, list[float]] = {way: [] for way in ways}
    sizes: dict[str, int] = {}
    for _ in range(TURNS):
        for way, read in ways.items():
            started = time.perf_counter()
            sizes[way] = read()
            taken[way].append(time.perf_counter() - started)
    first = median(taken["own JSON Lines"])
    return [
        {
            "what": name,
            "how": way,
            "seconds": round(median(all_), 2),
            "of its own": round(median(all_) / first, 2),
            "MB": round(sizes[way] / 1e6, 1) if way != "lines, unwritten" else 0,
        }
        for way, all_ in taken.items()
    ]


def _written(stack: PromptStack, run_id: UUID, endpoint: str, form: str) -> Iterable[bytes]:
    lines, batch = OpenAILines(), Written(run_id, endpoint, "benchmark", 0)
    asked = {"encoding_format": form}
    for block in stack.run_results.lines(run_id, Span()):
        yield b"".join(
            lines.answered(
                batch,
                AnsweredLine(
                    one.position,
                    one.custom_id or "",
                    asked,
                    one.answer,
                    None if one.vector is None else one.vector.tobytes(),
                    one.text_bytes,
                ),
            )
            for one in block
        )


def _size(blocks: Iterable[bytes]) -> int:
    return sum(map(len, blocks))


def _show(rows: list[dict[str, str | float]], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows) + "\n")
        return
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
