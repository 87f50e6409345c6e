"""The HNSW indexes of vectors, built where that is quicker than to keep them up.

For 50,000 vectors of 1,536 dimensions that took two minutes on two cores, and to store them nine
seconds (python -m benchmarks.embedding_run).
"""

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from repositories.embeddings import create_index, index_name, index_type, partition_of
from repositories.models import EmbeddingModel
from repositories.session import Ledger, explained

BUILD_MEMORY = "512MB"
"""A build that does not fit gets many times slower (pgvector's README, Index Build Time)."""
LOCK_SECONDS = 2


class VectorIndexes:
    """Builds and drops them.

    Not in a unit of work: what is built concurrently, so that vectors can be stored meanwhile,
    belongs to no transaction.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._engine: Engine = ledger.engine

    def drop(self, model: EmbeddingModel) -> bool:
        """Drop a model's index before many vectors come; False where searches keep it in use."""
        with explained(), self._connection() as connection:
            connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
            try:
                connection.execute(text(f"DROP INDEX IF EXISTS {index_name(model)}"))
            except DBAPIError as error:
                if getattr(error.orig, "pgcode", None) != "55P03":
                    raise
                return False
            finally:
                connection.execute(text("RESET lock_timeout"))
        return True

    def build(self, model: EmbeddingModel) -> bool:
        """Build a model's index if it isn't there; False where another process is at it."""
        if index_type(model) is None:
            return True
        with explained(), self._connection() as connection:
            # For one process at a time, also where this one is killed: the session has the lock.
            # Not waited for in a statement: the other's build waits for all statements to end.
            lock = {"name": index_name(model)}
            if not connection.scalar(text("SELECT pg_try_advisory_lock(hashtext(:name))"), lock):
                return False
            try:
                self._build(connection, model)
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(hashtext(:name))"), lock)
        return True

    def _build(self, connection: Connection, model: EmbeddingModel) -> None:
        is_valid = connection.scalar(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
            {"name": index_name(model)},
        )
        if is_valid:
            return
        if is_valid is not None:
            # What a build left that was broken off.
            connection.execute(text(f"DROP INDEX CONCURRENTLY {index_name(model)}"))
        connection.execute(text(f"SET maintenance_work_mem = '{BUILD_MEMORY}'"))
        try:
            connection.execute(text(create_index(model, "CONCURRENTLY")))
            connection.execute(text(f"ANALYZE {partition_of(model)}"))
        finally:
            connection.execute(text("RESET maintenance_work_mem"))

    def _connection(self) -> Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
