"""When it is quicker to build a model's index anew than to keep it up while vectors come.

For some shares of new vectors, the same load twice: into the index, and with the index dropped
before and built after. Run `python -m benchmarks.index_load --help`.
"""

import argparse
import hashlib
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.migrations import upgrade
from promptstack.repositories.session import Ledger
from promptstack.repositories.vector_indexes import VectorIndexes

DIMENSIONS = 1_536
BATCH = 2_048
COLUMNS = ("there", "new", "share", "kept up s", "built anew s", "anew / kept up")


def main() -> None:
    """Measure each share on a model of its own, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--there", type=int, default=10_000, help="vectors before the load")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5, 1.0])
    given = parser.parse_args()
    table = Table(*COLUMNS)
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with EmbeddedServers(folder, durable=False) as urls:
            ledger = Ledger(urls.database_url)
            upgrade(ledger.engine)
            for share in given.shares:
                new = int(given.there * share)
                kept = _load(ledger, f"kept-{share}", given.there, new, anew=False)
                anew = _load(ledger, f"anew-{share}", given.there, new, anew=True)
                table.add_row(
                    f"{given.there:,}", f"{new:,}", f"{share:.0%}", f"{kept:.1f}", f"{anew:.1f}",
                    f"{anew / kept:.2f}",
                )  # fmt: skip
            ledger.close()
    finally:
        remove(folder)
    Console().print(table)


def _load(ledger: Ledger, name: str, there: int, new: int, *, anew: bool) -> float:
    """Seconds that `new` vectors take where `there` are, until all are in the index."""
    indexes = VectorIndexes(ledger)
    with ledger.transaction() as unit:
        model = unit.embeddings.register_model("openai", name, DIMENSIONS, with_index=False)
    _store(ledger, model, 0, there)
    indexes.build(model)
    began = time.monotonic()
    if anew:
        with ledger.transaction() as unit:
            indexes.drop(unit, model)
    _store(ledger, model, there, new)
    indexes.build(model)
    return time.monotonic() - began


def _store(ledger: Ledger, model: EmbeddingModel, first: int, count: int) -> None:
    random = np.random.default_rng(first)
    for at in range(first, first + count, BATCH):
        size = min(BATCH, first + count - at)
        vectors = random.standard_normal((size, DIMENSIONS), dtype=np.float32)
        hashes = [hashlib.sha256(f"{number}".encode()).digest() for number in range(at, at + size)]
        with ledger.transaction() as unit:
            unit.embeddings.store(model, hashes, vectors)


if __name__ == "__main__":
    main()
