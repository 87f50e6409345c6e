"""How long a search takes, and how much it finds, in a small collection among many.

Random vectors without clusters, which are the hardest for an index. Each search is compared with a
comparison of everything. Run `python -m benchmarks.search --help`.
"""

import argparse
import hashlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from promptstack.embedded.servers import EmbeddedServers, remove
from promptstack.repositories.content.documents import NewDocument, Passage
from promptstack.repositories.content.passages import SearchScope
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.migrations import upgrade
from promptstack.repositories.session import Ledger
from promptstack.repositories.vector_indexes import VectorIndexes
from promptstack.services.collections.service import CollectionService

Vectors = npt.NDArray[np.float32]
DIMENSIONS = 256
CHUNKS_A_DOCUMENT = 1_000
LIMIT = 10
COLUMNS = ("collection", "of all", "median ms", "found", "recall", "filtered ms", "filtered found")


def main() -> None:
    """Search collections of several sizes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, nargs="+", default=[100, 1_000, 5_000, 50_000])
    parser.add_argument("--searches", type=int, default=20)
    given = parser.parse_args()
    table = Table(*COLUMNS)
    folder = Path(tempfile.mkdtemp(prefix="promptstack-benchmark-"))
    try:
        with EmbeddedServers(folder, durable=False) as urls:
            ledger = Ledger(urls.database_url)
            upgrade(ledger.engine)
            with ledger.transaction() as unit:
                model = unit.embeddings.register_model("fake", "m", DIMENSIONS, with_index=False)
            stored = {count: _fill(ledger, model, count) for count in given.chunks}
            VectorIndexes(ledger).build(model)
            for count, (place, vectors) in stored.items():
                share = f"{count / sum(given.chunks):.1%}"
                row = _measure(ledger, model, place, vectors, given.searches)
                table.add_row(f"{count:,}", share, *row)
            ledger.close()
    finally:
        remove(folder)
    Console().print(table)


def _fill(ledger: Ledger, model: EmbeddingModel, count: int) -> tuple[UUID, Vectors]:
    """Make a collection of so many chunks; one document in ten has the metadata of the filter."""
    place = CollectionService(ledger).create(f"of {count}").id
    vectors = np.random.default_rng(count).standard_normal((count, DIMENSIONS), np.float32)
    size = min(CHUNKS_A_DOCUMENT, max(1, count // 10))
    for number, first in enumerate(range(0, count, size)):
        passages = [
            Passage(n, 0, f"{place} {n}", hashlib.sha256(f"{place} {n}".encode()).digest())
            for n in range(first, min(first + size, count))
        ]
        metadata = '{"tenth": true}' if number % 10 == 0 else None
        with ledger.transaction() as unit:
            new = NewDocument(None, place, str(number), "", b"", metadata)
            document = unit.documents.lock(unit.documents.put_many([new])[new.key])
            assert document is not None  # noqa: S101 - it was put just now
            unit.documents.replace_chunks(document, passages, b"")
            hashes = [passage.content_hash for passage in passages]
            unit.embeddings.store(model, hashes, vectors[first : first + size])
    return place, vectors


def _measure(
    ledger: Ledger, model: EmbeddingModel, place: UUID, vectors: Vectors, searches: int
) -> Sequence[str]:
    unit_vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    times: dict[bool, list[float]] = {False: [], True: []}
    found: dict[bool, list[int]] = {False: [], True: []}
    right = 0
    for number in range(searches):
        query = np.random.default_rng(10_000_000 + number).standard_normal(DIMENSIONS, np.float32)
        best = set(np.argsort(-(unit_vectors @ query))[:LIMIT].tolist())
        for is_filtered in (False, True):
            scope = SearchScope((place,), where={"tenth": True} if is_filtered else {})
            began = time.perf_counter()
            with ledger.transaction() as unit:
                matches = unit.passages.search(model, query, LIMIT, scope)
            times[is_filtered].append(1_000 * (time.perf_counter() - began))
            found[is_filtered].append(len(matches))
            if not is_filtered:
                right += len(best & {match.position for match in matches})
    return (
        f"{statistics.median(times[False]):.1f}",
        f"{min(found[False])}",
        f"{right / (LIMIT * searches):.0%}",
        f"{statistics.median(times[True]):.1f}",
        f"{min(found[True])}",
    )


if __name__ == "__main__":
    main()
