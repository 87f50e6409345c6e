"""HNSW indexes of vectors, built at the end of a load if that is quicker than keeping them up.

To build one of 50,000 vectors of 1,536 dimensions took two minutes on two cores, and to store the
vectors nine seconds (python -m benchmarks.embedding_run).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any

import psycopg2
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from promptstack.repositories.content.vector_tables import (
    create_index,
    index_name,
    index_type,
    partition_of,
)
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.driver_errors import explained
from promptstack.repositories.errors import IndexNotBuilt
from promptstack.repositories.session import Ledger
from promptstack.repositories.timeouts import IDLE_LIMIT, is_pooled
from promptstack.repositories.unit_of_work import UnitOfWork

logger = logging.getLogger(__name__)

BUILD_MEMORY = "512MB"
"""A build that does not fit gets many times slower (pgvector's README, Index Build Time)."""
BUILDS = text(
    "SELECT count(*) FROM pg_stat_progress_create_index WHERE relid = to_regclass(:partition)"
)
LOCK_SECONDS = 2
LOOK_SECONDS = 0.2
"""Between two looks whether to stop a build."""


class VectorIndexes:
    """Builds and drops indexes.

    A build runs concurrently, outside of any transaction, so that vectors can be stored meanwhile.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._engine: Engine = ledger.engine

    @staticmethod
    def drop(unit: UnitOfWork, model: EmbeddingModel) -> bool:
        """Drop a model's index before many vectors come. False if that can't be done now.

        It is the last step of the transaction that starts the load, which goes on either way.
        """
        name = index_name(model)
        # Not during a build: the two would deadlock.
        if not unit.try_lock(name):
            return False
        try:
            with unit.session.begin_nested():
                # Searches use it, and a statement that waits for it blocks new searches.
                unit.session.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                unit.session.execute(text(f"DROP INDEX IF EXISTS {name}"))
        except DBAPIError as error:
            if error.connection_invalidated:
                raise
            logger.warning("index %s could not be dropped and is kept up: %s", name, error.orig)
            return False
        return True

    def build(self, model: EmbeddingModel, is_stopped: Callable[[], bool] = lambda: False) -> bool:
        """Build a model's index if it isn't there. False if another process builds it.

        Raises `IndexNotBuilt`, also soon after `is_stopped` is true, and `LedgerUnavailable`.
        """
        if index_type(model) is None:
            return True
        with explained(), self._alone(model) as is_alone:
            if not is_alone:
                return False
            try:
                with self._connection() as connection:
                    self._build(connection, model, is_stopped)
            except DBAPIError as error:
                # Also if the connection broke: the build itself may crash PostgreSQL.
                raise IndexNotBuilt(
                    f"The search index of {model.provider}/{model.model} could not be built: "
                    f"{_reason(error)}."
                ) from error
        return True

    def _build(
        self, connection: Connection, model: EmbeddingModel, is_stopped: Callable[[], bool]
    ) -> None:
        is_valid = connection.scalar(
            text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
            {"name": index_name(model)},
        )
        if is_valid:
            return
        if not is_pooled(connection):
            connection.execute(text(f"SET maintenance_work_mem = '{BUILD_MEMORY}'"))
        drop = text(f"DROP INDEX CONCURRENTLY {index_name(model)}")
        with _cancelled(connection, is_stopped):
            if is_valid is not None:
                # An interrupted build left it.
                connection.execute(drop)
            try:
                connection.execute(text(create_index(model, "CONCURRENTLY")))
            except DBAPIError:
                if not is_stopped():
                    # An invalid index takes disk space, and slows all stores.
                    with suppress(DBAPIError):
                        connection.execute(drop)
                raise
            connection.execute(text(f"ANALYZE {partition_of(model)}"))

    @contextmanager
    def _alone(self, model: EmbeddingModel) -> Iterator[bool]:
        """Hold the lock of the model's index. False if another process builds it.

        An idle transaction holds the lock, and no build waits for it. The lock isn't waited for,
        as the other build waits for all statements to end. If that process was killed, its lock is
        free while PostgreSQL may still build, so the running builds are counted as well.
        """
        with self._ledger.transaction() as unit:
            unit.session.execute(text(f"SET LOCAL {IDLE_LIMIT} = 0"))
            partition = {"partition": partition_of(model)}
            yield unit.try_lock(index_name(model)) and not unit.session.scalar(BUILDS, partition)

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        """Open a separate connection, as its settings end with it."""
        with self._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT")
            connection.detach()
            yield connection


@contextmanager
def _cancelled(connection: Connection, is_stopped: Callable[[], bool]) -> Iterator[None]:
    """Cancel the connection's running statement once `is_stopped` is true."""
    driver: Any = connection.connection.dbapi_connection
    is_over = Event()

    def watch() -> None:
        while not is_over.wait(LOOK_SECONDS):
            if is_stopped():
                with suppress(psycopg2.Error):
                    driver.cancel()

    watching = Thread(target=watch, name="index-build", daemon=True)
    watching.start()
    try:
        yield
    finally:
        is_over.set()
        watching.join()


def _reason(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]
