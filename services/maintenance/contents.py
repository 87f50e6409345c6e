"""What maintenance does for documents: collections go in batches, then vectors nobody uses."""

import time
from collections.abc import Callable
from uuid import UUID

from promptstack.repositories.run_models import RunState
from promptstack.repositories.session import Ledger
from promptstack.services.runs.lifecycle import RunLifecycle

COLLECTIONS_AT_ONCE = 20
CHUNKS_AT_ONCE = 5_000
RUNS_AT_ONCE = 100
VECTORS_AT_ONCE = 200
"""Jobs of documents wait while so many are judged and deleted."""
WORDS_AT_ONCE = 1_000
STEP_SECONDS = 2.0
"""After this long no other batch is begun: the next round goes on."""
STATEMENT_SECONDS = 10.0
LOCK_SECONDS = 2.0
DELETED = ("COLLECTION_DELETED", "The run's collection was deleted.")


class ContentMaintenance:
    """Runs in every worker; a lock lets one at a time do it."""

    def __init__(
        self,
        ledger: Ledger,
        lifecycle: RunLifecycle,
        *,
        query_seconds: float,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """`query_seconds` is for how long the vectors of queries are kept."""
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._query_seconds = query_seconds
        self._timer = timer

    def run_once(self) -> None:
        """Do what is there to do, in batches, each of a transaction of its own."""
        began = self._timer()
        while self._timer() - began < STEP_SECONDS:
            with self._ledger.statement() as statement:
                signs = statement.signs.of_contents(self._query_seconds)
            found = (
                (signs.deleted and self._delete_collections())
                + (signs.unused and self._delete_vectors())
                + (signs.wordless and self._fill_words())
                + (signs.old_queries and self._forget_queries())
            )
            if not found:
                return

    def _delete_collections(self) -> bool:
        """Delete a part of each. Returns whether something was deleted, and more may be to do."""
        with self._ledger.transaction() as unit:
            deleted = unit.collections.deleted(COLLECTIONS_AT_ONCE)
        parts = [self._delete_part(collection_id) for collection_id in deleted]
        return any(parts)

    def _delete_part(self, collection_id: UUID) -> bool:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            if not unit.try_lock(f"delete {collection_id}"):
                return False
            documents = unit.documents.some_of(collection_id, CHUNKS_AT_ONCE)
            if documents:
                unit.documents.delete_with_chunks(documents, collection_id)
                return True
            runs = unit.run_maintenance.of_collection(collection_id, RUNS_AT_ONCE)
            for run in runs.ended:
                unit.run_maintenance.drop(run, drops_vectors=True)
            if runs.is_none:
                return unit.collections.remove(collection_id)
        self._end(runs.open)
        return bool(runs.ended)

    def _end(self, runs: list[UUID]) -> None:
        for run_id in runs:
            self._lifecycle.end(run_id, RunState.CANCELLED, *DELETED)

    def _delete_vectors(self) -> bool:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            unit.limit_locks(LOCK_SECONDS)
            if not unit.try_lock("delete vectors"):
                return False
            return unit.unused_contents.delete_vectors(VECTORS_AT_ONCE) > 0

    def _fill_words(self) -> bool:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            return unit.documents.fill_words(WORDS_AT_ONCE) > 0

    def _forget_queries(self) -> bool:
        with self._ledger.transaction() as unit:
            unit.limit_statements(STATEMENT_SECONDS)
            return unit.query_vectors.prune(self._query_seconds) > 0
