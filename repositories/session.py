"""The unit of work: one transaction and the repositories within it. Only it commits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

from config.errors import PromptStackError
from repositories.attempts import AttemptRepository
from repositories.documents import DocumentRepository
from repositories.embeddings import EmbeddingRepository
from repositories.errors import LedgerConflict, LedgerOutdated, LedgerUnavailable
from repositories.jobs import JobRepository
from repositories.users import ApiKeyRepository, UserRepository
from repositories.workers import WorkerRepository

CONNECT_TIMEOUT_SECONDS = 5
CONFLICTS = frozenset({"40001", "40P01", "55P03"})
"""PostgreSQL's codes for a serialization failure, a deadlock, a lock that isn't free."""
OUTAGES = ("08", "53300", "57P")
"""How its codes begin for a lost connection, too many connections, a shutdown."""
OUTDATED_SCHEMA = frozenset({"42P01", "42703"})
"""PostgreSQL's codes for a table and a column that don't exist."""
_AFTER_COMMIT = "promptstack.after_commit"


class UnitOfWork:
    """The repositories over one session, which all see and belong to one transaction."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @cached_property
    def users(self) -> UserRepository:
        """Users."""
        return UserRepository(self.session)

    @cached_property
    def api_keys(self) -> ApiKeyRepository:
        """Keys to the HTTP door."""
        return ApiKeyRepository(self.session)

    @cached_property
    def jobs(self) -> JobRepository:
        """Jobs."""
        return JobRepository(self.session)

    @cached_property
    def attempts(self) -> AttemptRepository:
        """Calls to providers."""
        return AttemptRepository(self.session)

    @cached_property
    def documents(self) -> DocumentRepository:
        """Documents and chunks."""
        return DocumentRepository(self.session)

    @cached_property
    def embeddings(self) -> EmbeddingRepository:
        """Models and vectors."""
        return EmbeddingRepository(self.session)

    @cached_property
    def workers(self) -> WorkerRepository:
        """Worker processes."""
        return WorkerRepository(self.session)

    def try_lock(self, name: str) -> bool:
        """Take a lock that one transaction at a time can have; False when another has it."""
        query = text("SELECT pg_try_advisory_xact_lock(hashtext(:name))")
        return bool(self.session.scalar(query, {"name": name}))

    def after_commit(self, action: Callable[[], None]) -> None:
        """Run `action` once the outermost transaction is committed, and never if it isn't."""
        if _AFTER_COMMIT not in self.session.info:
            self.session.info[_AFTER_COMMIT] = _AfterCommit()
            event.listen(self.session, "after_commit", _committed)
            event.listen(self.session, "after_soft_rollback", _rolled_back)
            event.listen(self.session, "after_transaction_end", _ended)
        savepoint = self.session.get_nested_transaction()
        self.session.info[_AFTER_COMMIT].actions.append((savepoint, action))


@dataclass
class _AfterCommit:
    """What a session has to do once its transaction is over."""

    actions: list[tuple[SessionTransaction | None, Callable[[], None]]] = field(
        default_factory=list
    )
    """Each with the savepoint in which it was asked for, and with which it goes."""
    is_committed: bool = False


class Ledger:
    """The database: makes units of work from one pool of connections."""

    def __init__(self, url: str, *, pool_size: int = 10, max_overflow: int = 20) -> None:
        self._engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=max_overflow,
            # A connection that a restarted PostgreSQL has closed is replaced unseen.
            pool_pre_ping=True,
            # Errors would else quote a statement's values, which hold prompts.
            hide_parameters=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_SECONDS,
                "application_name": "promptstack",
            },
        )
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[UnitOfWork]:
        """Open a transaction; commit at the end, roll back on any error, always close.

        Raises `LedgerUnavailable` where PostgreSQL can't be reached.
        """
        try:
            with self._sessions.begin() as session:
                yield UnitOfWork(session)
        except OperationalError as error:
            explained = _explain(error)
            if explained is None:
                raise
            raise explained from error
        except PoolTimeoutError as error:
            raise LedgerUnavailable(
                "All connections to the database are in use; raise DATABASE_POOL_SIZE."
            ) from error
        except ProgrammingError as error:
            if getattr(error.orig, "pgcode", None) not in OUTDATED_SCHEMA:
                raise
            raise LedgerOutdated(
                "The database's schema is missing or older than this version; "
                "run `promptstack migrate`."
            ) from error

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


def _explain(error: OperationalError) -> PromptStackError | None:
    """Tell an outage and a conflict from what PostgreSQL refuses for good."""
    code = getattr(error.orig, "pgcode", None)
    if code in CONFLICTS:
        return LedgerConflict("Two changes of the same rows met in the database; try again.")
    if code is None or error.connection_invalidated or str(code).startswith(OUTAGES):
        return LedgerUnavailable(
            "The database could not be reached or broke the connection; "
            "check DATABASE_URL and that PostgreSQL runs.",
            detail=str(error.orig),
        )
    return None


def _committed(session: Session) -> None:
    waiting = session.info[_AFTER_COMMIT]
    released = session.get_nested_transaction()
    if released is None:
        waiting.is_committed = True
        return
    # A savepoint was released: what was asked for within it belongs to what is around it now.
    outer = released.parent if released.parent and released.parent.nested else None
    waiting.actions = [
        (outer if savepoint is released else savepoint, action)
        for savepoint, action in waiting.actions
    ]


def _rolled_back(session: Session, transaction: SessionTransaction) -> None:
    waiting = session.info[_AFTER_COMMIT]
    if transaction.nested:
        waiting.actions = [pair for pair in waiting.actions if not _is_within(pair[0], transaction)]


def _is_within(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is outer


def _ended(session: Session, transaction: SessionTransaction) -> None:
    """Act when the session has given its connection back.

    An action that needs a connection would else wait for one that its own thread holds.
    """
    if transaction.parent is not None:
        return
    ended = session.info[_AFTER_COMMIT]
    session.info[_AFTER_COMMIT] = _AfterCommit()
    if ended.is_committed:
        for _, action in ended.actions:
            action()
