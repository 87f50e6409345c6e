"""The ledger: units of work on the database. Only they commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from promptstack.repositories.driver_errors import explained
from promptstack.repositories.listening import Listener
from promptstack.repositories.pooled_connections import check_before_use
from promptstack.repositories.timeouts import limit_idleness
from promptstack.repositories.unit_of_work import SingleStatement, UnitOfWork
from promptstack.repositories.wire_values import dump_jsonb

CONNECT_TIMEOUT_SECONDS = 5
TIMEOUT_SECONDS = 15


class Ledger:
    """The database: makes units of work from one pool of connections."""

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 10,
        max_overflow: int = 20,
        timeout_seconds: int = TIMEOUT_SECONDS,
    ) -> None:
        """Open nothing yet; a dead connection is noticed after `timeout_seconds`."""
        self._engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            # Errors would else quote a statement's values, which hold prompts.
            hide_parameters=True,
            json_serializer=dump_jsonb,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                # Of a network that went silent, nothing but these would ever tell.
                "keepalives_idle": max(1, timeout_seconds // 3),
                "keepalives_interval": max(1, timeout_seconds // 3),
                "keepalives_count": 2,
                "tcp_user_timeout": timeout_seconds * 1_000,
                "application_name": "promptstack",
            },
        )
        check_before_use(self._engine)
        limit_idleness(self._engine)
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[UnitOfWork]:
        """Open a transaction; commit at the end, roll back on any error, always close.

        Raises `LedgerUnavailable`, `LedgerSlow`, `LedgerConflict`, and `LedgerOutdated`.
        """
        with explained(), self._sessions.begin() as session:
            yield UnitOfWork(session)

    @contextmanager
    def single(self) -> Iterator[UnitOfWork]:
        """Open a unit of work for one exchange, which PostgreSQL commits by itself.

        Raises as `transaction`, which has two exchanges more. Each exchange here is a transaction
        of its own.
        """
        with explained(), self._sessions() as session:
            session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            yield UnitOfWork(session)
            session.commit()

    @contextmanager
    def statement(self) -> Iterator[SingleStatement]:
        """Run one statement, which PostgreSQL commits by itself. Raises the same.

        It is one exchange. A transaction has three, and the work of a session.
        """
        with explained():
            connection = self._engine.raw_connection()
            driver: Any = connection.driver_connection
            try:
                driver.autocommit = True
                yield SingleStatement(connection)
            finally:
                if driver.closed:
                    connection.invalidate()
                else:
                    driver.autocommit = False
                connection.close()

    @contextmanager
    def listening(self, channel: str) -> Iterator[Listener]:
        """Listen for notifications, on a connection of its own. Raises as `transaction` does."""
        with explained():
            connection = self._engine.raw_connection()
            connection.detach()
            driver: Any = connection.dbapi_connection
            try:
                yield Listener(connection, channel)
            finally:
                if driver.closed:
                    connection.invalidate()
                else:
                    connection.close()

    @staticmethod
    def join(session: Session) -> UnitOfWork:
        """Take part in a caller's own transaction, which the caller commits."""
        return UnitOfWork(session)

    def ping(self) -> str:
        """PostgreSQL's version. Raises `LedgerUnavailable`."""
        with self.transaction() as work:
            return str(work.session.scalar(text("SHOW server_version")))

    @property
    def engine(self) -> Engine:
        """The engine, for migrations and for callers that bring their own session."""
        return self._engine

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
